"""What is in the bytes of OpenVINO's constants, one number at a time, and where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from phiconv import ir
from phiconv.errors import UsageError, WeightError
from phiconv.quantizers import encode
from phiconv_formats.openvino.packing import pack, parts_of

ROWS = np.random.default_rng(5).standard_normal((3, 96)).astype(np.float32)
ENCODINGS = [
    *(
        ir.openvino_affine(bits, size, symmetric=s)
        for bits in (4, 8)
        for size in (32, 96)
        for s in (True, False)
    ),
    ir.openvino_nf4(32),
    ir.OPENVINO_MXFP4,
    ir.OPENVINO_MXFP8,
    ir.F16,
]


def codes_of(blocks):
    return blocks.codes.transpose(1, 0, 2).reshape(-1).astype(int).tolist()


def halves(data):
    return [half for byte in data.tolist() for half in (byte & 15, byte >> 4)]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)
def test_parts_have_the_bytes_that_they_say(encoding):
    width = {"u4": 0.5, "i4": 0.5, "nf4": 0.5, "f4e2m1": 0.5, "u8": 1, "i8": 1, "f16": 2}
    width |= {"f8e4m3": 1, "f8e8m0": 1}
    parts = parts_of(encoding, ROWS.shape)
    packed = pack(encode(ROWS, encoding))
    assert [data.size for data in packed] == [-int(-np.prod(p.shape) * width[p.type] // 1) for p in parts]
    groups = 96 // encoding.block_size
    if encoding != ir.F16:
        assert parts[0].shape == ((3, groups, encoding.block_size) if groups > 1 else (3, 96))
        assert parts[1].shape == ((3, groups, 1) if groups > 1 else (3, 1))


def test_nibbles_begin_in_the_lower_half():
    blocks = encode(ROWS, ir.openvino_affine(4, 32, symmetric=False))
    codes, scales, zero_points = pack(blocks)
    assert halves(codes) == codes_of(blocks)
    assert scales.tobytes() == blocks.scales.tobytes()
    assert halves(zero_points) == [*blocks.zero_points.tolist(), 0]  # nine of them: a half is left


def test_signed_nibbles_are_twos_complement():
    blocks = encode(ROWS, ir.openvino_affine(4, 32, symmetric=True))
    signed = [half - 16 if half > 7 else half for half in halves(pack(blocks)[0])]
    assert signed == [code - 8 for code in codes_of(blocks)]


def test_eight_bits():
    blocks = encode(ROWS, ir.openvino_affine(8, 96, symmetric=False))
    assert pack(blocks)[0].tolist() == codes_of(blocks)
    assert pack(blocks)[2].tolist() == blocks.zero_points.tolist()
    blocks = encode(ROWS, ir.openvino_affine(8, 96, symmetric=True))
    assert pack(blocks)[0].view(np.int8).tolist() == codes_of(blocks)


def test_scales_of_mxfp4_are_exponents():
    blocks = encode(ROWS, ir.OPENVINO_MXFP4)
    codes, exponents = pack(blocks)
    assert halves(codes) == codes_of(blocks)
    assert [2.0 ** (e - 127) for e in exponents.tolist()] == (2 * blocks.scales).tolist()
    with np.errstate(all="ignore"):
        assert pack(encode(ROWS * np.inf, ir.OPENVINO_MXFP4))[1].tolist() == [255] * 9


def test_scales_of_mxfp8_are_exponents():
    blocks = encode(ROWS, ir.OPENVINO_MXFP8)
    codes, exponents = pack(blocks)
    assert codes.tolist() == codes_of(blocks)
    assert [2.0 ** (e - 127) for e in exponents.tolist()] == blocks.scales.tolist()
    with np.errstate(all="ignore"):
        assert pack(encode(ROWS * np.inf, ir.OPENVINO_MXFP8))[1].tolist() == [255] * 9


def test_a_number_that_only_mlx_has_is_refused():
    blocks = encode(ROWS, ir.MLX_MXFP8)
    assert [part.size for part in pack(blocks)] == [3 * 96, 9]
    blocks.codes[2, 4, 1] = 0xFF  # -480
    with pytest.raises(WeightError, match="480"):
        pack(blocks)


def test_blocks_of_llama_cpp_are_stored_as_they_are():
    ours = encode(ROWS, ir.openvino_affine(4, 32, symmetric=True))
    theirs = ir.Blocks(ir.Q4_0, ours.codes, ours.scales)
    assert [d.tobytes() for d in pack(theirs)] == [d.tobytes() for d in pack(ours)]
    assert parts_of(ir.Q4_0, (3, 96)) == parts_of(ours.encoding, (3, 96))


@pytest.mark.parametrize("encoding", [ir.Q4_1, ir.Q4_K, ir.IQ4_NL, ir.NVFP4, ir.F64], ids=lambda e: e.name)
def test_what_has_no_constants_is_refused(encoding):
    with pytest.raises(UsageError, match=encoding.name):
        parts_of(encoding, (4, 256))
