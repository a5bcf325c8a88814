"""The quantized Hugging Face folders that servers run: compressed-tensors, GPTQ and AWQ."""
