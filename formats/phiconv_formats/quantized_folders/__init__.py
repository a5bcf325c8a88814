"""Quantized Hugging Face folders as sources: each matrix put together again, its numbers as they are stored.

One module for each family says which arrays a matrix has, and how they give its codes, scales and zero points
(`matrices`). Where runtimes have such blocks the numbers move there unchanged; where no blocks describe them
the rows are float32.
"""

from __future__ import annotations
