"""Blocks equal what the real NNCF makes of weights that no golden file has."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from paths import FIXTURES
from phiconv import ir
from phiconv.quantizers import encode
from phiconv_formats.openvino.packing import pack

pytest.importorskip("nncf", reason="NNCF is not installed")
pytest.importorskip("openvino", reason="OpenVINO is not installed", exc_type=ImportError)

pytestmark = pytest.mark.runtime

SHAPE = (96, 384)


@pytest.fixture(scope="module")
def golden():
    """The script that asks NNCF."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIXTURES)
        import make_golden_nncf
    return make_golden_nncf


def weights(rng, dtype):
    """Rows of very different sizes, a few weights of them large, rounded to few or many bits."""
    sizes = np.exp2(rng.uniform(-12, 4, (SHAPE[0], 1)))
    x = rng.standard_normal(SHAPE) * sizes * (1 + 30 * (rng.random(SHAPE) < 0.01))
    x = np.where(rng.random((SHAPE[0], 1)) < 0.2, np.abs(x), x)
    steps = np.exp2(np.floor(np.log2(np.abs(x) + 1e-30)) - rng.integers(1, 24, SHAPE))
    return (np.round(x / steps) * steps).astype(np.float32).astype(dtype)


ENCODINGS = {
    **{
        f"openvino_int{bits}_{kind}_g{size}": ir.openvino_affine(
            bits, size if size > 0 else SHAPE[1], symmetric=kind == "sym"
        )
        for bits, kind, size in ((4, "asym", 128), (4, "sym", 64), (8, "asym", -1), (8, "sym", -1))
    },
    "openvino_nf4_g64": ir.openvino_nf4(64),
    "openvino_mxfp4": ir.OPENVINO_MXFP4,
    "openvino_mxfp8": ir.OPENVINO_MXFP8,
}


@pytest.mark.parametrize("stored", [ir.F16, ir.BF16, ir.F32], ids=lambda e: e.name)
@pytest.mark.parametrize("name", ENCODINGS)
def test_blocks(golden, name, stored):
    x = weights(np.random.default_rng(sum(name.encode())), stored.dtype)
    made = [hashlib.sha256(part).hexdigest() for part in pack(encode(x, ENCODINGS[name]))]
    assert made == golden.digests(x, *golden.MODES[name])
