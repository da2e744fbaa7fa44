"""The stage rule: how long a chip is busy with one inference. The module does not need JAX."""

from __future__ import annotations

from typing import Any


def stage_s(overlap: bool, compute_s: Any, in_s: Any, out_s: Any) -> Any:
    """Seconds of a stage: the longest of its parts if they overlap, else their sum.

    Other modules restate the rule in another form, for example as rows of an integer program.
    `jaxpart/README.md` lists them, each with its test against the oracle.

    Args:
      overlap: whether a chip computes, receives and sends at the same time.
      compute_s: seconds of compute; a numpy or JAX array of any shape.
      in_s: seconds of receiving; an array of the same shape.
      out_s: seconds of sending; an array of the same shape.

    Returns:
      Seconds, of the same shape.
    """
    if not overlap:
        return compute_s + in_s + out_s
    xp = compute_s.__array_namespace__()
    return xp.maximum(compute_s, xp.maximum(in_s, out_s))
