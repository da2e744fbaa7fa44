"""Parallel tempering of valid partitions; a move costs work only for what it changes."""
