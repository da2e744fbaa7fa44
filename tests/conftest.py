"""Settings of all tests."""

import signal
from pathlib import Path

import hypothesis
import jax

# A shape that broadcasts by accident is a wrong figure somewhere.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run, and no clock: a shared machine may be slow.
hypothesis.settings.register_profile("jaxpart", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("jaxpart")

# Most of a test's time is compilation, and workers compile the same programs.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# A shell starts what runs in its background with Ctrl-C ignored, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
