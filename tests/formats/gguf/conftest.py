"""GGUF files for tests: of whole models, and of any keys and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import phiconv
from phiconv.quantizers import decode
from phiconv_formats.gguf.reader import open_gguf
from phiconv_formats.gguf.values import serialize_header, serialize_kv, serialize_tensor_info

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from phiconv_formats.gguf.values import GgufValue


@pytest.fixture(scope="session")
def gguf_of(model_folder, tmp_path_factory) -> Callable[..., Path]:
    """``gguf_of(kind, quant="F32")``: the GGUF of a kind of model; not to be written to."""
    root = tmp_path_factory.mktemp("gguf")

    def make(kind: str, quant: str = "F32") -> Path:
        path = root / f"{kind}-{quant}.gguf"
        if not path.exists():
            phiconv.convert(model_folder(kind), path, quant=quant)
        return path

    return make


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], tuple[dict[str, GgufValue], dict[str, Any]]]:
    """Keys and float32 tensors of a file, to be changed and written again."""

    def read(path: Path) -> tuple[dict[str, GgufValue], dict[str, Any]]:
        file = open_gguf(path)
        values = {n: decode(t.read(0, t.rows), t.columns).reshape(t.shape) for n, t in file.tensors.items()}
        return dict(file.metadata), values

    return read


@pytest.fixture(scope="session")
def gguf_bytes() -> Callable[..., bytes]:
    """A file of these keys and float32 tensors."""

    def build(entries: Mapping[str, GgufValue], tensors: Mapping[str, Any]) -> bytes:
        parts = [serialize_header(len(tensors), len(entries))]
        parts += [serialize_kv(key, value) for key, value in entries.items()]
        data, offset = [], 0
        for name, array in tensors.items():
            padding = bytes(-array.nbytes % 32)
            parts.append(serialize_tensor_info(name, array.shape, 0, offset))
            data += [np.ascontiguousarray(array, "<f4").tobytes(), padding]
            offset += array.nbytes + len(padding)
        head = b"".join(parts)
        return b"".join([head, bytes(-len(head) % 32), *data])

    return build
