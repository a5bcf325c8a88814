"""The forward pass of a decoder: its operations, and what computes them in NumPy."""
