"""How ONNX operators can be divided: for each operator, the axes along which it can be cut."""
