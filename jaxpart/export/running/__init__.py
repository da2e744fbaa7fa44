"""Folders of stages, run as a pipeline on the machine at hand."""
