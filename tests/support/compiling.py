"""Programs for tests that compile much and compute little."""

from collections.abc import Callable
from typing import Any

import jax

# LLVM does no more than it must. XLA's own passes, which decide what is computed, are all on.
_QUICK = {"xla_backend_optimization_level": 0}


def quick(function: Callable[..., Any], static: tuple[str, ...] = ()) -> Callable[..., Any]:
    """`function` as one program that is compiled in about half the time, and runs far slower.

    Args:
      function: to compile, jitted or not.
      static: names of its static arguments.
    """
    return jax.jit(function, static_argnames=static, compiler_options=_QUICK)
