"""Lower bounds on the bottleneck of every valid partition, each with its proof, without JAX."""
