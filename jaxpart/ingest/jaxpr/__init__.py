"""Import of JAX functions as graphs: one node per primitive equation."""
