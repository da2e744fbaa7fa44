"""A partition in use: simulated as a pipeline."""
