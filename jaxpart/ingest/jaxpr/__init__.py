"""JAX functions become graphs: one node per primitive equation."""
