"""A partition as a pipeline of finitely many inferences, simulated."""
