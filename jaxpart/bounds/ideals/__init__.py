"""The ideals (down-sets) of a graph, and the dynamic programs over them. No JAX."""
