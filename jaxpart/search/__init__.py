"""Search: the engine with its budget and history, and one file a method."""
