"""Import of StableHLO modules as graphs: text, bytecode, portable artifacts, `jax.export`."""
