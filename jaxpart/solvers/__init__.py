"""Integer programs and minimum cuts on the host: repair, improvement and proof. No JAX."""
