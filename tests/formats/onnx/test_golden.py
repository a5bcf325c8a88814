"""ONNX Runtime's bytes, by checksum: for machines that cannot run it (fixtures/make_golden_onnx.py)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest

from paths import FIXTURES
from phiconv import ir
from phiconv.quantizers import encode
from phiconv_formats.onnx import packing
from phiconv_formats.onnx.integers import pack_integers

GOLDEN = json.loads((FIXTURES / "golden_onnx.json").read_text())
ENCODINGS = [(method, e) for method, encodings in ir.ONNX_AFFINE.items() for e in encodings]


@pytest.fixture(scope="module")
def tiles():
    """The input of the checksums."""
    spec = importlib.util.spec_from_file_location("make_golden", FIXTURES / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return np.clip(module.tiles(), -60000, 60000)


def packed(blocks, columns, method):
    """The bytes of the tensors, in the layout that the method is for."""
    if method == "qdq" and blocks.encoding.bits == 4:
        return packing.pack_columns(blocks, columns)
    if method == "gather":  # a zero without its sign
        return pack_integers(replace(blocks, scales=blocks.scales + blocks.scales.dtype.type(0)))
    return packing.pack(blocks, columns)


@pytest.mark.parametrize(("method", "encoding"), ENCODINGS, ids=lambda e: getattr(e, "name", ""))
def test_bytes(method, encoding, tiles):
    parts = packed(encode(tiles.astype(encoding.scale_type.dtype), encoding), tiles.shape[1], method)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()
    assert digest == GOLDEN[encoding.name]


def test_every_encoding_has_a_checksum():
    assert {e.name for _, e in ENCODINGS} == set(GOLDEN) - {"version"}
