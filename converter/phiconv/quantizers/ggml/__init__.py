"""llama.cpp: the bytes of ggml's quantizers."""
