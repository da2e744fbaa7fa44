"""Partitions taken away: folders of stages, run, simulated and measured."""
