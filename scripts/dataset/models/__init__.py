"""The architectures of the data set, and the functions that trace them."""
