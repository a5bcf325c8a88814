"""Codebook blocks as bytes: the inverse of each other, and read alike by the `gguf` package."""

from __future__ import annotations

import gguf.quants
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from phiconv import ir
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv.quantizers import decode, encode
from phiconv_formats.gguf.packing import pack, unpack
from phiconv_formats.gguf.types import TYPE_OF_ENCODING

SMALL = [ir.IQ4_NL, ir.IQ4_XS, ir.MXFP4, ir.NVFP4, ir.TQ1_0, ir.TQ2_0]
GRIDS = [ir.IQ1_S, ir.IQ1_M, ir.IQ2_XXS, ir.IQ2_XS, ir.IQ2_S, ir.IQ3_XXS, ir.IQ3_S]
EVERY_BYTE_COUNTS = [e for e in [*SMALL, *GRIDS] if e not in {ir.NVFP4, ir.TQ1_0}]

every_encoding = pytest.mark.parametrize("encoding", [*SMALL, *GRIDS], ids=lambda e: e.name)


def random_bytes(encoding, count=500):
    """Blocks with every bit pattern, but scales that are finite."""
    kind = TYPE_OF_ENCODING[encoding]
    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, (count, kind.block_bytes), dtype=np.uint8)
    places = {ir.TQ1_0: [53], ir.TQ2_0: [65], ir.IQ1_M: [55]}
    if encoding not in {ir.MXFP4, ir.NVFP4}:
        data[:, places.get(encoding, [1])] &= 0xBF
    return data


def read_by_gguf(data, encoding):
    return gguf.quants.dequantize(data, GGMLQuantizationType[encoding.name.upper()])


@every_encoding
def test_the_gguf_package_reads_the_same(encoding):
    data = random_bytes(encoding)
    if encoding == ir.MXFP4:
        data[:, 0] = np.minimum(data[:, 0], 250)  # beyond it, 12 times the scale is no float32
    weights = decode(unpack(data.reshape(-1), encoding), TYPE_OF_ENCODING[encoding].block_size)
    np.testing.assert_array_equal(weights, read_by_gguf(data, encoding))


@pytest.mark.parametrize("encoding", EVERY_BYTE_COUNTS, ids=lambda e: e.name)
def test_packing_is_the_inverse_of_unpacking(encoding):
    data = random_bytes(encoding).reshape(-1)
    np.testing.assert_array_equal(pack(unpack(data, encoding)), data)


@every_encoding
def test_unpacking_is_the_inverse_of_packing(encoding):
    if encoding in GRIDS:
        blocks = unpack(random_bytes(encoding).reshape(-1), encoding)
    else:
        blocks = encode(np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32), encoding)
    again = unpack(pack(blocks), encoding)
    np.testing.assert_array_equal(again.codes, blocks.codes)
    assert again.scales.tobytes() == blocks.scales.tobytes()
    assert again.scales.dtype == encoding.scale_dtype
    if blocks.sub_scales is not None:
        np.testing.assert_array_equal(again.sub_scales, blocks.sub_scales)


@every_encoding
def test_bits_per_weight(encoding):
    kind = TYPE_OF_ENCODING[encoding]
    assert encoding.bits_per_weight == 8 * kind.block_bytes / kind.block_size


@every_encoding
def test_table_holds_every_code(encoding):
    codes = unpack(random_bytes(encoding).reshape(-1), encoding).codes
    assert set(np.unique(codes)) <= set(range(len(encoding.table)))
    if encoding in GRIDS and len(encoding.table) == 7:
        assert 3 not in codes


def test_refuses_blocks_that_no_file_can_hold():
    codes, scales = np.zeros((4, 3, 4), np.uint8), np.zeros(3, np.float32)
    with pytest.raises(UsageError, match="in fours, not 3"):
        pack(ir.Blocks(ir.NVFP4, codes, scales))
    foreign = ir.CodebookEncoding("nf4", 64, (0, 1), 4.25)
    with pytest.raises(UsageError, match="no tensor type for nf4"):
        pack(ir.Blocks(foreign, codes, scales))
    with pytest.raises(UnsupportedModelError, match="nf4"):
        unpack(b"", foreign)
    codes = np.full((64, 1, 4), 7, np.uint8)
    codes[0, 0, 0] = 1
    one = np.ones((16, 1), np.int8)
    with pytest.raises(UsageError, match="no point of the grid of iq3_s"):
        pack(ir.Blocks(ir.IQ3_S, codes, scales[:1].astype(np.float16), sub_scales=one[:8]))
    with pytest.raises(UsageError, match="without their sub-scales"):
        pack(ir.Blocks(ir.IQ4_XS, codes, scales[:1].astype(np.float16)))
