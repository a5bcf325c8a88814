"""GGUF files whose queries, keys and values, and experts, are stored in types of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv_formats.gguf.packing import pack
from phiconv_formats.gguf.reader import open_gguf
from phiconv_formats.gguf.types import TYPE_OF_ENCODING
from phiconv_formats.gguf.values import serialize_header, serialize_kv, serialize_tensor_info

if TYPE_CHECKING:
    from pathlib import Path

TYPES = {
    "attn_q": ir.Q4_0, "attn_k": ir.Q8_0, "attn_v": ir.F16, "ffn_gate_exps": ir.Q4_1, "ffn_up_exps": ir.Q5_0,
}  # fmt: skip
"""The type of each; all other tensors are float32."""


def mixed_types(source: Path, path: Path) -> Path:
    """The same model as an unquantized GGUF with these types; a fused attn_qkv becomes three matrices."""
    file = open_gguf(source)
    tensors: dict[str, Any] = {}
    keys = {key.rpartition(".")[2]: value.value for key, value in file.metadata.items()}
    heads, kv_heads = keys["head_count"], keys["head_count_kv"]
    for name, tensor in file.tensors.items():
        values = decode(tensor.read(0, tensor.rows), tensor.columns).reshape(tensor.shape)
        if "attn_qkv" in name:
            size = len(values) // (heads + 2 * kv_heads)
            parts = np.split(values, [heads * size, (heads + kv_heads) * size])
            tensors |= {name.replace("qkv", part): rows for part, rows in zip("qkv", parts, strict=True)}
        else:
            tensors[name] = values
    head, data = [serialize_header(len(tensors), len(file.metadata))], b""
    head += [serialize_kv(key, value) for key, value in file.metadata.items()]
    for name, values in tensors.items():
        kind = TYPES.get(name.split(".")[-2], ir.F32) if values.ndim > 1 else ir.F32
        info = serialize_tensor_info(name, values.shape, TYPE_OF_ENCODING[kind].id, len(data))
        packed = pack(encode(values.reshape(-1, values.shape[-1]), kind)).tobytes()
        head.append(info)
        data += packed + bytes(-len(packed) % 32)
    start = b"".join(head)
    path.write_bytes(start + bytes(-len(start) % 32) + data)
    return path
