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


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_compiled() -> None:
    """Compiled programs are kept between runs, in the user's cache unless JAX is told elsewhere."""
    import jax
    import platformdirs

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("jaxpart"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
