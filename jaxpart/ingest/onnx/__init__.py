"""ONNX models become graphs: one node per operator."""
