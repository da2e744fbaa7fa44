"""A user's input: a graph, a module, and the problem that they make as arrays. No JAX."""
