"""Folders of fixtures/quantized_folders as a user has them, whole or with something changed."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from paths import FIXTURES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["FOLDERS", "Stored", "array", "arrays_of", "complete", "read_file", "write_file"]

ROOT = FIXTURES / "quantized_folders"
FOLDERS: dict[str, dict[str, Any]] = json.loads((ROOT / "folders.json").read_text())

_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "I64": "<i8", "I32": "<i4",
    "I8": "i1", "U8": "u1", "F8_E4M3": "u1", "F8_E8M0": "u1",
}  # fmt: skip


class Stored(NamedTuple):
    """An array of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def values(self) -> np.ndarray:
        """As NumPy has it; E4M3 and E8M0 as bytes."""
        return np.frombuffer(self.data, _TYPES[self.dtype]).reshape(self.shape)


def array(dtype: str, values: np.ndarray) -> Stored:
    """An array to be written."""
    return Stored(dtype, values.shape, np.ascontiguousarray(values, _TYPES[dtype]).tobytes())


def read_file(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """All arrays of a safetensors file, and its metadata."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    return {
        name: Stored(
            info["dtype"], tuple(info["shape"]), data[start + info["data_offsets"][0] :][: _size(info)]
        )
        for name, info in header.items()
    }, metadata


def _size(info: Mapping[str, Any]) -> int:
    return info["data_offsets"][1] - info["data_offsets"][0]


def write_file(path: Path, arrays: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    at = 0
    for name, stored in arrays.items():
        offsets = [at, at + len(stored.data)]
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": offsets}
        at += len(stored.data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.data for a in arrays.values()))


def arrays_of(name: str) -> dict[str, Stored]:
    """What a tool made of the matrices of a layer."""
    return read_file(ROOT / f"{name}.safetensors")[0]


_PARTS = ("self_attn", "mlp", "experts", "router")


def complete(
    name: str, folder: Path, *, arrays: Mapping[str, Stored | None] | None = None, **settings: Any
) -> Path:
    """Makes a quantized folder whole.

    Args:
        name: Which one.
        folder: Has the model that it was made of, and becomes it.
        arrays: What is stored otherwise; None for what is missing.
        **settings: What ``quantization_config`` says otherwise.
    """
    made, metadata = read_file(ROOT / f"{name}.safetensors")
    others = read_file(folder / "model.safetensors")[0]
    replaced = tuple(part for part in _PARTS if any(part in name for name in made))
    unquantized = {n: a for n, a in others.items() if not _is_matrix(n, replaced)}
    changed = unquantized | made | dict(arrays or {})
    write_file(folder / "model.safetensors", {n: a for n, a in changed.items() if a is not None}, metadata)
    path = folder / "config.json"
    quantization = FOLDERS[name]["quantization_config"] | settings
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    return folder


def _is_matrix(name: str, parts: tuple[str, ...]) -> bool:
    """Whether it is a matrix in one of these parts of a layer."""
    of_layer = name.startswith("model.layers.") and name.endswith(".weight")
    is_router = name.endswith(".gate.weight")
    return of_layer and any(part == "router" if is_router else part in name for part in parts)
