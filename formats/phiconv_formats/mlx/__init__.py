"""MLX: a model folder whose matrices may be quantized in groups."""
