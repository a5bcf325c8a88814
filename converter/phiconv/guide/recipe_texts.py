"""What recipes and types are, one or two sentences each, as data; `explaining` adds the numbers."""

from __future__ import annotations

__all__ = ["FLOATS", "GGUF_RECIPES", "GGUF_TYPES", "NEED_IMATRIX", "ORIGINS", "STEMS", "WORDS"]

FLOATS = {
    "f64": "A number in 64 bits, with 16 digits.",
    "f32": "A number in 32 bits, with 7 digits: more than any checkpoint needs.",
    "f16": "A number in 16 bits, with 3 digits; none is above 65504.",
    "bf16": "A number in 16 bits, with 2 digits and the range of float32: what most models are trained in.",
}

GGUF_RECIPES = {
    "Q8_0": "Everything in 8 bits: next to no loss, at half the size of 16 bits.",
    "Q6_K": "Everything in 6 bits: a loss that is hard to notice.",
    "Q5_K_M": "Five bits, and 6 for part of the value and down matrices, where errors cost most.",
    "Q5_K_S": "Five bits throughout the layers.",
    "Q5_1": "Five bits in an older layout, with a minimum for each block.",
    "Q5_0": "Five bits in an older layout.",
    "Q4_K_M": "Four bits, and 6 for part of the value and down matrices: where most people end up.",
    "Q4_K_S": "Four bits, with 5 for the first layers' value and down matrices.",
    "Q4_1": "Four bits in an older layout, with a minimum for each block.",
    "Q4_0": "Four bits in an older layout, which some processors have the fastest code for.",
    "IQ4_NL": "Four bits that stand for 16 values which are closer together near zero.",
    "IQ4_XS": "The same values in larger blocks: a little smaller than Q4_K_S, slower on some processors.",
    "MXFP4_MOE": "The experts of a mixture of experts in MXFP4, and everything else in 8 bits.",
    "Q3_K_L": "Three bits, with 5 for the value, down and output matrices.",
    "Q3_K_M": "Three bits, with 4 for some of the value and down matrices: the loss shows.",
    "Q3_K_S": "Three bits throughout the layers.",
    "IQ3_M": "About three and a half bits: patterns of four weights; value and output matrices in 4 bits.",
    "IQ3_S": "About three and a half bits: the sizes of four weights are one of 512 patterns.",
    "IQ3_XS": "A mixture of IQ3_S and IQ3_XXS.",
    "IQ3_XXS": "Three bits: the sizes of four weights are one of 256 patterns.",
    "Q2_K": "Two bits, with 3 for the value, down and output matrices: a last resort.",
    "Q2_K_S": "Two bits throughout the layers.",
    "IQ2_M": "About two and a half bits: the sizes of eight weights are one of 1024 patterns.",
    "IQ2_S": "About two and a half bits, smaller than IQ2_M.",
    "IQ2_XS": "A little more than two bits: the sizes of eight weights are one of 512 patterns.",
    "IQ2_XXS": "Two bits: the sizes of eight weights are one of 256 patterns.",
    "IQ1_M": "Under two bits: for the largest models alone.",
    "IQ1_S": "About one and a half bits: the smallest that there is.",
    "TQ2_0": "For models whose weights were trained to be -1, 0 or 1, in 2 bits each.",
    "TQ1_0": "For models whose weights were trained to be -1, 0 or 1, five of them in a byte.",
}
"""The recipes of GGUF; those of floats are in `FLOATS`."""

NEED_IMATRIX = frozenset("IQ3_XS IQ3_XXS Q2_K_S IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S".split())
"""Those that llama-quantize refuses without an importance matrix."""

_K = "Blocks of 256 are cut into smaller ones, whose scales are themselves numbers of few bits"
_GRID = "Groups of neighbouring weights are looked up in a table of points, so no bit is wasted on rare ones."

GGUF_TYPES = {
    "Q8_0": "A block is 32 signed bytes and a scale.",
    "Q5_1": "A block is 32 codes of 5 bits, a scale and a minimum.",
    "Q5_0": "A block is 32 codes of 5 bits and a scale.",
    "Q4_1": "A block is 32 codes of 4 bits, a scale and a minimum.",
    "Q4_0": "A block is 32 codes of 4 bits and a scale.",
    "Q6_K": f"{_K}; codes of 6 bits around zero.",
    "Q5_K": f"{_K}, and so are their minima; codes of 5 bits.",
    "Q4_K": f"{_K}, and so are their minima; codes of 4 bits.",
    "Q3_K": f"{_K}; codes of 3 bits around zero.",
    "Q2_K": f"{_K}, and so are their minima; codes of 2 bits.",
    "IQ4_NL": "A block is 32 codes of 4 bits, which stand for 16 unevenly spaced values, and a scale.",
    "IQ4_XS": "The 16 values of IQ4_NL in blocks of 256, with a scale of 6 bits for every 32 weights.",
    "IQ3_S": _GRID,
    "IQ3_XXS": _GRID,
    "IQ2_S": _GRID,
    "IQ2_XS": _GRID,
    "IQ2_XXS": _GRID,
    "IQ1_M": _GRID,
    "IQ1_S": _GRID,
    "TQ2_0": "A weight is -1, 0 or 1 times the scale of its block, in 2 bits.",
    "TQ1_0": "A weight is -1, 0 or 1 times the scale of its block, five weights in a byte.",
    "MXFP4": "A code is a floating-point number of 4 bits, and 32 of them share a power of two.",
    "NVFP4": "A code is a floating-point number of 4 bits, and 16 of them share a scale of 8 bits.",
}
"""What a type of GGUF stores."""

_MX4 = "A code is a floating-point number of 4 bits, and 32 of them share a power of two."
_MX8 = "A code is a floating-point number of 8 bits, and 32 of them share a power of two."

STEMS: dict[str, dict[str, str]] = {
    "litert": {
        "wi8": "Integer weights of 8 bits, with a scale for each row.",
        "wi4": "Integer weights of 4 bits, with a scale for each row: the smallest, and the least exact.",
        "wi4b32": "Integer weights of 4 bits, with a scale for every 32: the usual choice for phones.",
        "wi4b64": "Integer weights of 4 bits, with a scale for every 64.",
        "wi4b128": "Integer weights of 4 bits, with a scale for every 128.",
    },
    "mlx": {
        "2bit": "Integers of 2 bits with a scale and a minimum for each group: a last resort.",
        "3bit": "Integers of 3 bits with a scale and a minimum for each group: the loss shows.",
        "4bit": "Integers of 4 bits with a scale and a minimum for each group: MLX's usual choice.",
        "5bit": "Integers of 5 bits with a scale and a minimum for each group.",
        "6bit": "Integers of 6 bits with a scale and a minimum for each group.",
        "8bit": "Integers of 8 bits with a scale and a minimum for each group: next to no loss.",
        "mixed_2_6": "2 bits, and 6 for the head and some value and down matrices, which matter more.",
        "mixed_3_4": "3 bits, and 4 for the head and some value and down matrices, which matter more.",
        "mixed_3_6": "3 bits, and 6 for the head and some value and down matrices, which matter more.",
        "mixed_4_6": "4 bits, and 6 for the head and some value and down matrices, which matter more.",
        "mxfp4": _MX4,
        "mxfp8": _MX8,
        "nvfp4": "A code is a floating-point number of 4 bits, and 16 of them share a scale of 8 bits.",
    },
    "onnx": {
        "int4": "Integers of 4 bits for the layers, and of 8 for the embedding and the head.",
        "int8": "Integers of 8 bits: next to no loss.",
        "w4a16": "For the NPU of a Snapdragon: weights of 4 bits and activations of 16.",
        "w8a16": "For the NPU of a Snapdragon: weights of 8 bits and activations of 16.",
    },
    "openvino": {
        "int4": "Integers of 4 bits for the layers, and of 8 for the embedding and the head.",
        "int8": "Integers of 8 bits, a scale for each row: next to no loss.",
        "nf4": "Codes of 4 bits that stand for 16 values spaced as normally distributed weights are.",
        "mxfp4": _MX4,
        "mxfp8": _MX8,
    },
    "compressed-tensors": {
        "w4a16": "Weights of 4 bits; the server computes with 16-bit activations.",
        "w8a16": "Weights of 8 bits; the server computes with 16-bit activations.",
        "w8a8": "Weights of 8 bits; the server rounds activations to 8 bits as well, which makes it fast.",
        "w4a8": "Weights of 4 bits; the server rounds activations to 8 bits.",
        "fp8-dynamic": "Floating-point numbers of 8 bits for weights and activations, for newer cards.",
        "fp8-block": "The same with a scale for each square of 128 by 128 weights.",
        "nvfp4a16": "Floating-point numbers of 4 bits, 16 of which share a scale of 8 bits.",
        "mxfp4a16": _MX4,
        "mxfp8": _MX8,
    },
    "gptq": {
        "4bit": "Integers of 4 bits in the layout of GPTQ, rounded to nearest.",
        "8bit": "Integers of 8 bits in the layout of GPTQ, rounded to nearest.",
    },
    "awq": {"4bit": "Integers of 4 bits with zero points in the layout of AWQ, rounded to nearest."},
}
"""What the recipes of other formats are, by format and the first part of the name; but for floats."""

WORDS = {
    "asym": "zero points let codes cover the weights' own range",
    "sym": "there are no zero points, so codes lie around zero",
    "rtn": "scales come from the largest weight, as in plain rounding to nearest",
    "qdq": "products are written in ONNX's own operators",
    "k_quant": "scales and zero points are searched for the least error",
    "k_quant_mixed": "scales are searched, and what matters more gets 8 bits",
    "v2": "it is the second version of the format, which stores zero points as they are",
}
"""What the other parts of a name mean."""

ORIGINS = {
    "gguf": ("llama-quantize of llama.cpp", "https://github.com/ggml-org/llama.cpp"),
    "litert": ("litert-quantizer of Google", "https://github.com/google-ai-edge/ai-edge-quantizer"),
    "mlx": ("mlx-lm of Apple", "https://github.com/ml-explore/mlx-lm"),
    "onnx": ("ONNX Runtime and its GenAI model builder", "https://onnxruntime.ai/docs/genai"),
    "openvino": ("NNCF of Intel", "https://github.com/openvinotoolkit/nncf"),
    "compressed-tensors": ("llm-compressor of vLLM", "https://github.com/vllm-project/llm-compressor"),
    "gptq": ("GPTQModel", "https://github.com/ModelCloud/GPTQModel"),
    "awq": ("AutoAWQ", "https://github.com/casper-hansen/AutoAWQ"),
    "safetensors": ("PyTorch and transformers", "https://huggingface.co/docs/safetensors"),
}
"""By format: whose names the recipes are."""
