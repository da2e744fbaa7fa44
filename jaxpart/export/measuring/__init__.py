"""Nodes and stages measured on the device at hand; devices fitted, partitions chosen by it."""
