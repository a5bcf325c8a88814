"""litert-quantizer's integers against their formulas, one block and one weight at a time."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv.quantizers.best import best
from phiconv_formats.litert.packing import encoding_of, pack, parts_of, unpack

f32 = np.float32
LEAST = f32(2.0**-14)
ENCODINGS = [ir.litert_channel(8, 64), ir.litert_channel(4, 64), ir.litert_block(32), ir.litert_block(64)]
every_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)


def rows():
    """Rows of usual and of extreme weights, with ties and zeros."""
    usual = st.floats(-2, 2, width=16)
    some = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 3.5, -7.0, 1e-9, 1e-6])
    any_size = st.floats(-1e4, 1e4, width=32)
    shape = st.tuples(st.integers(1, 3), st.just(64))
    return st.one_of(*(hnp.arrays(f32, shape, elements=e, fill=e) for e in (usual, some, any_size)))


def plain(block, encoding):
    """Codes around 0 and the scale of a block, in float32."""
    m = f32(2 ** (encoding.bits - 1) - 1)
    scale = f32(max(abs(min(block)), abs(max(block)), f32(1e-9)) / m)
    if encoding.scale_type == ir.F16:
        scale = max(f32(np.float16(f32(ml_dtypes.bfloat16(scale)))), LEAST)
    least = -m if encoding.bits == 8 else -m - 1
    return [int(min(max(np.rint(f32(v / scale)), least), m)) for v in block], scale


@every_encoding
@settings(max_examples=25, deadline=None)
@given(x=rows())
def test_the_formula(x, encoding):
    blocks = encode(x, encoding)
    codes = blocks.codes.transpose(1, 0, 2).reshape(len(blocks), -1).astype(int) - encoding.offset
    expected = [plain(block, encoding) for block in x.reshape(-1, encoding.block_size)]
    assert codes.tolist() == [each for each, _ in expected]
    assert blocks.scales.astype(f32).tolist() == [scale for _, scale in expected]


@every_encoding
@settings(max_examples=25, deadline=None)
@given(x=rows())
def test_packing_has_an_inverse(x, encoding):
    blocks = encode(x, encoding)
    again = unpack(encoding, *pack(blocks))
    assert again.codes.dtype == blocks.codes.dtype
    assert np.array_equal(again.codes, blocks.codes)
    assert np.array_equal(again.scales, blocks.scales)
    assert again.scales.dtype == encoding.scale_type.dtype


@every_encoding
def test_an_encoding_is_known_by_its_parts(encoding):
    parts = parts_of(encoding, (6, 64))
    size = parts.block_size or 64
    assert encoding_of(parts.type, size, channels=parts.channels) == encoding
    assert [len(part) for part in pack(encode(np.ones((6, 64), f32), encoding))] == [
        6 * size for size in parts.row_bytes(64)
    ]


@every_encoding
def test_no_scale_that_xnnpack_refuses_is_written(encoding):
    """Whoever made the blocks: their codes get smaller instead."""
    x = np.zeros((2, 64), f32)
    x[1] = np.linspace(-1e-6, 1e-6, 64)
    for blocks in (encode(x, encoding), best(x, encoding, np.eye(64, dtype=f32))):
        _, scales = pack(blocks)
        tiny = np.finfo(encoding.scale_type.dtype).tiny
        assert (scales.view(encoding.scale_type.dtype) >= tiny).all()
        error = decode(unpack(encoding, *pack(blocks)), 64) - x
        assert np.abs(error).max() <= max(tiny, 1e-6)


def test_small_scales_keep_what_they_stand_for():
    encoding = ir.litert_block(32)
    codes = np.full((8, 1, 4), 15, np.uint8)
    blocks = ir.Blocks(encoding, codes, np.array([2.0**-15], np.float16))
    again = unpack(encoding, *pack(blocks))
    assert again.scales.tolist() == [2.0**-14]
    assert set(again.codes.ravel().tolist()) == {8 + 4}  # 3.5, rounded to even


@pytest.mark.parametrize("stored", [ir.Q4_0, ir.onnx_affine(4, 32, ir.F16)])
def test_blocks_go_to_others_and_not_back(stored):
    """Other runtimes' scales may be negative, which no codes of LiteRT make up for."""
    from phiconv.quantizers.repack import repack, repackable

    own = ir.litert_block(32)
    assert repackable(own, stored)
    assert not repackable(stored, own)
    assert repackable(ir.litert_block(128), own)
    blocks = encode(np.random.default_rng(0).normal(size=(3, 64)).astype(f32), own)
    assert np.array_equal(decode(repack(blocks, stored), 64), decode(blocks, 64))
