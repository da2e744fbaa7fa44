"""What a user describes, as arrays: a graph, a module, and the problem that they make. No JAX."""
