"""Stages of a JAX function: planned, run on devices, written as files."""
