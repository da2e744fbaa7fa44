"""The graphs that come with jaxpart: real architectures, listed by name and by split."""

from __future__ import annotations

from jaxpart.datasets.shipped import (
    SPLITS,
    contents,
    entry,
    is_shipped,
    load,
    names,
    resolve,
    split,
)

__all__ = ["SPLITS", "contents", "entry", "is_shipped", "load", "names", "resolve", "split"]
