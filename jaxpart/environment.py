"""What a measurement ran on: kept beside every figure."""

from __future__ import annotations

import os
import platform
from importlib import metadata

_PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "pyscipopt", "ortools")


def environment() -> dict[str, object]:
    """Device, cores and versions of what decides results and speed."""
    import jax  # whoever measures has started it

    return {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in _PACKAGES},
    }
