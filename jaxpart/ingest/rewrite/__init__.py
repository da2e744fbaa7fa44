"""Rewrites of a graph: fuse, contract, clone."""
