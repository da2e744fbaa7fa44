"""The environment of a run: device, cores, versions, and the cache of compiled programs."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

# Packages whose versions decide results and speed.
_PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "pyscipopt", "ortools")


def environment() -> dict[str, object]:
    """Describes the machine and the versions; studies store it with every measured figure."""
    import jax  # imported late: importing this module must not start JAX

    return {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "commit": commit(),
        **{package: metadata.version(package) for package in _PACKAGES},
    }


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
