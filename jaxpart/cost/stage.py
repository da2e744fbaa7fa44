"""The stage rule: how long a chip is busy with one inference. No JAX."""

from __future__ import annotations

from typing import Any


def stage_s(overlap: bool, compute_s: Any, in_s: Any, out_s: Any) -> Any:
    """Seconds of a stage: the longest of its parts where they overlap, else their sum.

    Args:
      overlap: whether a chip computes, receives and sends at the same time.
      compute_s: numpy or JAX arrays of one shape, seconds, as are the other two.
      in_s: of receiving.
      out_s: of sending.

    Other places restate the rule in a form of their own, as rows of an integer program or with
    transfers taken together; jaxpart/README.md lists them, each with its test against the oracle.
    """
    if not overlap:
        return compute_s + in_s + out_s
    xp = compute_s.__array_namespace__()
    return xp.maximum(compute_s, xp.maximum(in_s, out_s))
