"""Stages of an ONNX model: planned and written as ONNX files."""
