"""Settings for all tests."""

import gc
import itertools
import signal
from pathlib import Path

import hypothesis
import jax

# Accidental broadcasting of shapes gives wrong results, so it is an error.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Every run has the same examples. There is no deadline, because a shared machine may be slow.
hypothesis.settings.register_profile("jaxpart", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("jaxpart")

# Tests mostly compile, and their worker processes compile the same programs.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# A shell starts background commands with SIGINT ignored, and child processes inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)

# XLA maps memory for each program that it has compiled. Linux allows a process 65,530 maps; a
# process that has compiled thousands of programs reaches that, and crashes.
_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 15_000
_TESTS_BETWEEN = 20  # counting them takes milliseconds
_tests = itertools.count(1)


def pytest_runtest_teardown():
    """Drops compiled programs before there are too many; the next test compiles its own."""
    if next(_tests) % _TESTS_BETWEEN == 0 and _MAPS.exists():
        with _MAPS.open("rb") as maps:
            count = sum(1 for _ in maps)
        if count > _MOST_MAPS:
            jax.clear_caches()
            gc.collect()
