"""Import of ONNX models as graphs: one node per operator."""
