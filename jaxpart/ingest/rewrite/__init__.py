"""Graph to graph: fuse, contract, clone."""
