"""The environment of a run: device, cores, versions, and the cache of compiled programs."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxpart.errors import InputError

# Packages whose versions decide results and speed.
_PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "pyscipopt", "ortools")


def environment() -> dict[str, object]:
    """Describes the machine and the versions; studies store it with every measured figure."""
    return {
        "device": default_device().device_kind,
        "backend": backend(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "commit": commit(),
        **{package: metadata.version(package) for package in _PACKAGES},
    }


def default_device() -> Any:
    """The device that programs run on: `jax.default_device`, else the first that JAX finds."""
    import jax  # imported late: importing this module must not start JAX

    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None:
        return jax.local_devices()[0]
    return jax.local_devices(backend=chosen)[0] if isinstance(chosen, str) else chosen


def is_device_chosen() -> bool:
    """Whether the caller has set `jax.default_device`: programs then run on this device alone."""
    import jax

    return jax.config.jax_default_device is not None  # pyright: ignore[reportAttributeAccessIssue]


def backend() -> str:
    """What programs run on: `cpu`, `gpu` or `tpu`."""
    import jax

    return default_device().platform if is_device_chosen() else jax.default_backend()


def share_of_memory(share: float, otherwise: int) -> int:
    """Bytes of a part of the device's memory.

    Args:
      share: of the memory that JAX may take there, 0..1. On a GPU that is three quarters, if the
        user has not asked for another part (`XLA_PYTHON_CLIENT_MEM_FRACTION`).
      otherwise: bytes on a CPU, and where the device does not say how much it has.
    """
    if backend() == "cpu":
        return otherwise
    limit = (default_device().memory_stats() or {}).get("bytes_limit", 0)
    return int(share * limit) if limit > 0 else otherwise


def require_cpu() -> None:
    """Checks that JAX has its CPU beside an accelerator: results are verified there, in float64.

    Raises:
      InputError: `JAX_PLATFORMS` leaves the CPU out.
    """
    import jax

    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms and "cpu" not in platforms.split(","):
        raise InputError(
            f"JAX_PLATFORMS is {platforms}: expected {platforms},cpu, since results are verified "
            "on the CPU"
        )


def commit() -> str | None:
    """The commit of the checkout that holds this package, "+" behind it if its code was changed.

    None where there is no checkout, or no git.
    """
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        found = _git(folder, "rev-parse", "--short=7", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", "jaxpart", "scripts")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{found}+" if changed else found


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", os.fspath(folder), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return found.stdout.strip()


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder() -> Path:
    """The user's cache folder, or the folder that `JAX_COMPILATION_CACHE_DIR` names."""
    import platformdirs

    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(named or platformdirs.user_cache_dir("jaxpart"))


def keep_compiled() -> None:
    """Makes JAX keep compiled programs between runs, in `cache_folder`."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_SLOW_RELEASES = ((0, 10, 2), (0, 11, 0))  # of jaxlib, the first and the last
_warned = False


def warn_of_slow_release(tell: Callable[[str], object] = warnings.warn) -> None:
    """Says once in a process that this release of jaxlib is slow on a GPU, if it is.

    From jaxlib 0.10.2 to 0.11.0 a float32 scatter-add into few segments takes hundreds of times
    longer on a GPU. No program of jaxpart scatters floats there, and tests hold that; a user's own
    search method may, and so may JAX where it has no other form of a function.

    Args:
      tell: takes the message.
    """
    global _warned

    jaxlib = metadata.version("jaxlib")
    release = tuple(int(part) for part in re.findall(r"\d+", jaxlib)[:3])
    first, last = _SLOW_RELEASES
    if not _warned and first <= release <= last and backend() == "gpu":
        _warned = True
        tell(
            f"jaxlib {jaxlib} has slow scatters on a GPU. Programs of jaxpart do not scatter "
            "floats; a method of your own may. If it does, use 0.11.1 or newer (Python 3.12 or "
            "newer), or JAX_PLATFORMS=cpu"
        )
