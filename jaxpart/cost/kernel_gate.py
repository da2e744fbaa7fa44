"""What the kernel of `by_kernel.py` covers. Nothing here imports Pallas."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxpart.errors import InputError

MOST_CHIPS = 64  # two words of a set of chips
# Padded nodes, and padded nodes times kinds of chips: with more, the tables and the rows of a tile
# do not fit the memories of a TPU's core.
MOST_NODES = 8192
MOST_SECONDS = 16 * MOST_NODES
# The kernel runs with JAX from the first version on and before the second. Pallas changes between
# versions, so widen this only after the kernel's tests have passed, and
# `scripts/device_programs.py --programs kernel` has compiled.
_VERSIONS = ((0, 10), (0, 11))


def unchecked_version() -> str | None:
    """Why the kernel does not run with this version of JAX; None: it does."""
    first, end = _VERSIONS
    if first <= jax.__version_info__[:2] < end:
        return None
    low, high = (".".join(map(str, version)) for version in _VERSIONS)
    return f"runs with JAX {low} up to but not including {high}, not {jax.__version__}"


def require(num_chips: int, padded_nodes: int, kinds: int, dtype: Any) -> None:
    """Checks that the kernel covers a problem.

    Args:
      num_chips: C.
      padded_nodes: N.
      kinds: S, of chips.
      dtype: of the floats.

    Raises:
      InputError: it does not, or not with this version of JAX.
    """
    why = unchecked_version()
    if num_chips > MOST_CHIPS:
        why = f"has at most {MOST_CHIPS} chips, not {num_chips}"
    elif padded_nodes > MOST_NODES:
        why = f"has at most {MOST_NODES} padded nodes, not {padded_nodes}"
    elif padded_nodes * kinds > MOST_SECONDS:
        most = MOST_SECONDS // padded_nodes
        why = f"has at most {most} kinds of chips with {padded_nodes} padded nodes, not {kinds}"
    elif np.dtype(dtype) != np.float32:
        why = f"computes in float32, not {np.dtype(dtype)}"
    if why is not None:
        raise InputError(f"the form 'kernel' {why}; expected the form 'rows' or 'arrays'")
