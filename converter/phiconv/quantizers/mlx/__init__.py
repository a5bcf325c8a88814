"""MLX: the numbers of ``mx.quantize``."""
