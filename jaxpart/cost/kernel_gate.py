"""What the kernel of `by_kernel.py` covers. Nothing here imports Pallas."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxpart.errors import InputError

MOST_CHIPS = 64  # two words of a set of chips
MOST_NODES = 8192  # padded; with more, tables and rows do not fit the memories of a TPU's core
# JAX from the first version on, before the second. Pallas changes between versions without notice:
# widen it after the kernel's tests and `scripts/device_programs.py --programs kernel` have passed.
_VERSIONS = ((0, 10), (0, 11))


def refusal() -> str | None:
    """Why the kernel cannot run with this version of JAX; None: it can."""
    first, end = _VERSIONS
    if first <= jax.__version_info__[:2] < end:
        return None
    low, high = (".".join(map(str, version)) for version in _VERSIONS)
    return f"the form 'kernel' was checked with JAX from {low} to before {high}, not {jax.__version__}"


def require(num_chips: int, padded_nodes: int, dtype: Any) -> None:
    """Checks that the kernel covers a problem.

    Args:
      num_chips: C.
      padded_nodes: N.
      dtype: of the floats.

    Raises:
      InputError: it does not, or not with this version of JAX.
    """
    if why := refusal():
        raise InputError(f"{why}; expected another form or another version")
    rest = "expected another form: 'rows' or 'arrays'"
    if num_chips > MOST_CHIPS:
        raise InputError(f"the form 'kernel' has at most {MOST_CHIPS} chips, not {num_chips}; {rest}")
    if padded_nodes > MOST_NODES:
        raise InputError(
            f"the form 'kernel' has at most {MOST_NODES} padded nodes, not {padded_nodes}; {rest}"
        )
    if np.dtype(dtype) != np.float32:
        raise InputError(f"the form 'kernel' computes in float32, not {np.dtype(dtype)}; {rest}")
