"""Settings of all tests."""

import hypothesis
import jax

# A shape that broadcasts by accident is a wrong figure somewhere.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run, and no clock: a shared machine may be slow.
hypothesis.settings.register_profile("jaxpart", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("jaxpart")
