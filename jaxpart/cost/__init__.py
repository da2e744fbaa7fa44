"""The cost model and the rules that a valid partition keeps, each defined once."""
