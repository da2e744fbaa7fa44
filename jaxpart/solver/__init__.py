"""SCIP and minimum cuts on the host: repair, polish and proof. Nothing here imports JAX."""
