"""MLX's bytes, by checksum: for machines that cannot run it (fixtures/make_golden_mlx.py made them)."""

from __future__ import annotations

import hashlib
import importlib.util
import json

import numpy as np
import pytest

from paths import FIXTURES
from phiconv import ir
from phiconv.quantizers import encode
from phiconv_formats.mlx.packing import pack

GOLDEN = json.loads((FIXTURES / "golden_mlx.json").read_text())
ENCODINGS = {e.name: e for e in (*ir.MLX_AFFINE, ir.MLX_MXFP4, ir.MLX_MXFP8, ir.MLX_NVFP4)}
TYPES = {"f16": ir.F16, "bf16": ir.BF16, "f32": ir.F32}


@pytest.fixture(scope="module")
def tiles():
    """The inputs of the checksums."""
    spec = importlib.util.spec_from_file_location("make_golden", FIXTURES / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with np.errstate(over="ignore"):
        return {name: module.tiles().astype(stored.dtype) for name, stored in TYPES.items()}


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_bytes(name, tiles):
    expected = GOLDEN[name]
    made = {
        stored: [hashlib.sha256(part).hexdigest() for part in pack(encode(tiles[stored], ENCODINGS[name]))]
        for stored in expected
    }
    assert made == expected


def test_every_encoding_has_a_checksum():
    assert set(ENCODINGS) == set(GOLDEN) - {"version"}
