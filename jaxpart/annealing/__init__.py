"""Tempered chains of valid partitions: moves priced by what they touch, all chains at once."""
