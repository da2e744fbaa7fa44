"""The graphs that come with jaxpart: real architectures, by name and by side of the split."""

from __future__ import annotations

from jaxpart.datasets.shipped import SPLITS, contents, entry, load, names, resolve, split

__all__ = ["SPLITS", "contents", "entry", "load", "names", "resolve", "split"]
