"""Methods that prove: dynamic programs over ideals and the integer program."""
