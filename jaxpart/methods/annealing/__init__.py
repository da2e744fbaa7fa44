"""Parallel tempering of valid partitions: moves priced by what they touch."""
