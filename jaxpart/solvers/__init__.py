"""Integer programs and minimum cuts on the host: repair, improvement, proof. No JAX."""
