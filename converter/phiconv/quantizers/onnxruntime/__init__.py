"""ONNX Runtime: the numbers of its own quantizers and of its Python tools'."""
