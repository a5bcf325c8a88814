"""Names of formats, runtimes and methods that newcomers meet, three sentences each, as data."""

from __future__ import annotations

from phiconv.guide.terms import Term

__all__ = ["FORMAT_TERMS"]

FORMAT_TERMS: dict[str, Term] = {
    "GGUF": Term(
        (
            "One file with weights, tokenizer and settings.",
            "llama.cpp opens it, and so do Ollama, LM Studio, Jan and many more.",
            "It is the choice where you do not know what will run the model.",
        ),
        "llama.cpp",
        "llama.cpp, Ollama, LM Studio",
        ("ggml",),
    ),
    "MLX": Term(
        (
            "Apple's library for the processors of its own computers.",
            "A model is a folder of safetensors and config.json.",
            "It is the fastest choice on a Mac with an M1 or later.",
        ),
        "https://github.com/ml-explore/mlx",
        "mlx-lm, LM Studio on a Mac",
        ("mlx-lm",),
    ),
    "ONNX": Term(
        (
            "A file format for graphs of computations, and Microsoft's runtime for it.",
            "ONNX Runtime GenAI runs language models on processors, graphics cards and NPUs under Windows.",
            "transformers.js runs them in a web page.",
        ),
        "https://onnx.ai",
        "ONNX Runtime GenAI, transformers.js",
        ("onnxruntime", "genai"),
    ),
    "OpenVINO": Term(
        (
            "Intel's runtime for its processors, graphics and NPUs.",
            "A model is a folder with a graph (.xml) and its weights (.bin).",
            "Choose it for a computer with an Intel processor.",
        ),
        "https://docs.openvino.ai",
        "OpenVINO GenAI",
        ("openvino-genai", "ir"),
    ),
    "LiteRT": Term(
        (
            "Google's runtime for phones and small computers, once called TensorFlow Lite.",
            "LiteRT-LM opens one file, a .litertlm, with graph, weights and tokenizer.",
            "Choose it for Android and iOS.",
        ),
        "https://ai.google.dev/edge/litert",
        "LiteRT-LM",
        ("tflite", "litert-lm", "tensorflow-lite"),
    ),
    "safetensors": Term(
        (
            "A file of tensors with their names and shapes, which holds no code.",
            "Models on the Hugging Face hub are folders of such files.",
            "It is what phiconv reads most, and writes with --to safetensors.",
        ),
        "Hugging Face",
        "transformers and most other tools",
        ("safetensor", "huggingface-folder"),
    ),
    "compressed-tensors": Term(
        (
            "A folder of safetensors whose config.json says how the weights are quantized.",
            "Servers such as vLLM compute with them as they are.",
            "Choose it to serve many people on graphics cards.",
        ),
        "vLLM's llm-compressor",
        "vLLM, SGLang, transformers",
        ("llm-compressor",),
    ),
    "GPTQ": Term(
        (
            "A method of quantizing with a text, and a layout of files that is named after it.",
            "phiconv writes the layout (--to gptq), rounded to nearest or with --effort best.",
            "vLLM and others read it.",
        ),
        "arXiv:2210.17323",
        "vLLM, SGLang, transformers",
    ),
    "AWQ": Term(
        (
            "A method of quantizing that scales important columns first, and a layout named after it.",
            "phiconv writes the layout (--to awq), rounded to nearest or with --effort best.",
            "vLLM and others read it.",
        ),
        "arXiv:2306.00978",
        "vLLM, SGLang, transformers",
    ),
    "microscaling": Term(
        (
            "Floating-point codes of 4 or 8 bits, 32 of which share a power of two.",
            "MXFP4 and MXFP8 are two such types.",
            "New graphics cards multiply with them directly; elsewhere integers are more exact.",
        ),
        "the Open Compute Project's MX specification, 2023",
        "GGUF, MLX, OpenVINO, compressed-tensors",
        ("mx", "fp4", "ocp"),
    ),
    "FP8": Term(
        (
            "Floating-point numbers of 8 bits.",
            "Graphics cards since Ada and Hopper multiply with them twice as fast as with 16 bits.",
            "In compressed-tensors the recipes are fp8-dynamic and fp8-block.",
        ),
        "arXiv:2209.05433",
        "vLLM",
        ("float8",),
    ),
}
"""By name."""
