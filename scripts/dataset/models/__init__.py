"""The architectures of the data set, and how each is traced."""
