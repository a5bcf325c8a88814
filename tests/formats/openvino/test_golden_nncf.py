"""NNCF's bytes, by checksum: fixtures/make_golden_nncf.py made them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from phiconv import ir
from phiconv.quantizers import encode
from phiconv_formats.openvino.packing import pack

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
GOLDEN = json.loads((FIXTURES / "golden_nncf.json").read_text())
TYPES = {"f16": ir.F16, "bf16": ir.BF16, "f32": ir.F32}
ENCODINGS = {
    **{
        f"openvino_int{bits}_{'sym' if symmetric else 'asym'}_g{group}": ir.openvino_affine(
            bits, group if group > 0 else 512, symmetric=symmetric
        )
        for bits, groups in ((4, (32, 64, 128, -1)), (8, (-1,)))
        for symmetric in (False, True)
        for group in groups
    },
    **{e.name: e for e in ir.OPENVINO_NF4},
    "openvino_mxfp4": ir.OPENVINO_MXFP4,
}


@pytest.fixture(scope="module")
def tiles():
    """The inputs of the checksums: those rows that are finite in the type."""
    spec = importlib.util.spec_from_file_location("make_golden", FIXTURES / "make_golden.py")
    make_golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_golden)
    with np.errstate(over="ignore"):
        rows = {name: make_golden.tiles().astype(stored.dtype) for name, stored in TYPES.items()}
    return {name: x[np.isfinite(x.astype(np.float32)).all(axis=1)] for name, x in rows.items()}


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_bytes(name, tiles):
    made = {
        stored: [hashlib.sha256(part).hexdigest() for part in pack(encode(tiles[stored], ENCODINGS[name]))]
        for stored in TYPES
    }
    assert made == GOLDEN[name]


def test_every_encoding_has_a_checksum():
    assert set(ENCODINGS) == set(GOLDEN) - {"version"}
