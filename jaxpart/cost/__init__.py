"""The cost model and the rules of a valid partition, stated once."""
