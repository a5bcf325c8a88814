"""NNCF's bytes, by checksum: fixtures/make_golden_nncf.py made them."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from paths import FIXTURES
from phiconv import ir
from phiconv.quantizers import encode
from phiconv_formats.openvino.packing import pack

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
    "openvino_mxfp8": ir.OPENVINO_MXFP8,
}


@pytest.fixture(scope="module")
def inputs():
    """The inputs of the checksums: those rows that are finite in the type."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIXTURES)
        from edges import edges
        from make_golden import tiles

    made = {}
    for kind, rows in (("tiles", tiles()), ("edges", edges())):
        for name, stored in TYPES.items():
            with np.errstate(over="ignore"):
                x = rows.astype(stored.dtype)
            made[f"{kind} {name}"] = x[np.isfinite(x.astype(np.float32)).all(axis=1)]
    return made


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_bytes(name, inputs):
    made = {
        which: [hashlib.sha256(part).hexdigest() for part in pack(encode(x, ENCODINGS[name]))]
        for which, x in inputs.items()
    }
    assert made == GOLDEN[name]


def test_every_encoding_has_a_checksum():
    assert set(ENCODINGS) == set(GOLDEN) - {"version"}
