"""The tools whose bytes phiconv's are compared with, and the releases that the comparison was made with.

The versions are those of ``constraints.txt``, and of the scripts in ``fixtures/`` that made golden values.
llama.cpp numbers its releases so since August 2026, beside its builds (b1234): this is the tag v0.5.0.
"""

from __future__ import annotations

__all__ = ["PEERS"]

_NO_PEER: dict[str, str] = {}
_SERVERS = {"compressed-tensors": "0.19", "llm-compressor": "0.14"}

PEERS: dict[str, dict[str, str]] = {
    "gguf": {"llama.cpp": "0.5.0"},
    "litert": {"litert-quantizer": "0.11.0"},
    "mlx": {"mlx": "0.32.4", "mlx-lm": "0.32.2"},
    "onnx": {"onnxruntime": "1.31.1", "onnxruntime-genai": "0.18.0"},
    "openvino": {"nncf": "3.4", "openvino": "2026.4"},
    "safetensors": _NO_PEER,
    "compressed-tensors": _SERVERS,
    "gptq": {"gptqmodel": "7.7"},
    "awq": {"gptqmodel": "7.7"},
}
"""By target: tools and their versions."""
