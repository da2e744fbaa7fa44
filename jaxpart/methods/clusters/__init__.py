"""Partitions grown as quotient graphs: branches of the graph can run on parallel chips."""
