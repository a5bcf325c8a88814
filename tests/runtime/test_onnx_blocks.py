"""Blocks equal what the real ONNX Runtime's quantizers make of them, and its operators give them back."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from paths import FIXTURES
from phiconv import ir
from phiconv.quantizers import decode, encode
from phiconv.quantizers.repack import repack
from phiconv_formats.onnx import packing
from phiconv_formats.onnx.integers import pack_integers

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
pytest.importorskip("onnx_ir", reason="onnx-ir is not installed")
onnx = pytest.importorskip("onnx")

pytestmark = pytest.mark.runtime

f32 = np.float32
SHAPE = (4, 768)  # three blocks of 256 to a row, so an odd number
ENCODINGS = [
    (method, e)
    for method, encodings in ir.ONNX_AFFINE.items()
    for e in encodings
    # Zero points of an odd number of blocks do not fill a row's bytes; phiconv refuses such UINT4 tensors.
    if not (method == "gather" and e.has_zero_point and e.block_size == 256)
]
INT4, UINT4 = onnx.TensorProto.INT4, onnx.TensorProto.UINT4

every_encoding = pytest.mark.parametrize(
    ("method", "encoding"), ENCODINGS, ids=lambda e: getattr(e, "name", "")
)


@pytest.fixture(scope="module")
def quantize():
    """The quantizers of ONNX Runtime, as the golden checksums were made."""
    path = FIXTURES / "make_golden_onnx.py"
    spec = importlib.util.spec_from_file_location("make_golden_onnx", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.quantize


def normal(rng):
    return rng.standard_normal(SHAPE)


def every_size(rng, low, high):
    return normal(rng) * np.repeat(2.0 ** rng.uniform(low, high, (SHAPE[0], SHAPE[1] // 64)), 64, axis=1)


TILES = {
    "normal": lambda rng: normal(rng) * 0.02,
    "heavy_tailed": lambda rng: rng.standard_t(2, SHAPE),
    "all_positive": lambda rng: np.abs(normal(rng)),
    "all_negative": lambda rng: -np.abs(normal(rng)),
    "tiny": lambda rng: normal(rng) * 1e-8,
    "zeros_of_both_signs": lambda rng: rng.choice([0.0, -0.0], SHAPE),
    "zeros_and_ones": lambda rng: rng.choice([0.0, -0.0, 1.0], SHAPE),
    "ties_of_the_largest": lambda rng: rng.choice([0.5, -0.5, 0.25], SHAPE),
    "constants": lambda rng: np.repeat(rng.standard_normal((SHAPE[0], 3)), 256, axis=1),
    "integers": lambda rng: rng.integers(-8, 9, SHAPE),
    "halves": lambda rng: rng.integers(-40, 41, SHAPE) / 2,
    "powers_of_two": lambda rng: 2.0 ** rng.integers(-12, 12, SHAPE) * rng.choice([-1, 1], SHAPE),
    "outlier": lambda rng: np.where(rng.random(SHAPE) < 0.003, 3000.0, normal(rng) * 0.02),
    "large": lambda rng: normal(rng) * 1e4,
    "every_size": lambda rng: every_size(rng, -30, 13),
    "subnormal_float16": lambda rng: rng.integers(-40, 41, SHAPE) * 2.0**-24,
    "subnormal_float32": lambda rng: rng.integers(-40, 41, SHAPE) * 2.0**-149,
    "near_subnormal_float32": lambda rng: every_size(rng, -149, -118),
    "huge_float32": lambda rng: np.clip(normal(rng) * 1e38, -3e38, 3e38),
}


def packed(blocks, method):
    """The bytes of the tensors, in the layout that the method is for."""
    if method == "qdq" and blocks.encoding.bits == 4:
        parts = packing.pack_columns(blocks, SHAPE[1])
    elif method == "gather":  # a zero without its sign
        unsigned = replace(blocks, scales=blocks.scales + blocks.scales.dtype.type(0))
        parts = pack_integers(unsigned)
    else:
        parts = packing.pack(blocks, SHAPE[1])
    return [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]


@every_encoding
@pytest.mark.filterwarnings("ignore:.*(encountered|overflow|divide)")  # of NumPy, in the peer's code
def test_bytes_are_equal(method, encoding, quantize):
    rng = np.random.default_rng(7)
    for name, tile in TILES.items():
        with np.errstate(over="ignore", under="ignore"):
            weights = tile(rng).astype(f32).astype(encoding.scale_type.dtype)
        if not np.isfinite(weights.astype(f32)).all():  # larger than a float16
            continue
        ours, theirs = packed(encode(weights, encoding), method), quantize(weights, encoding, method)
        assert len(ours) == len(theirs)
        different = [np.count_nonzero(a != b) for a, b in zip(ours, theirs, strict=True)]
        assert different == [0] * len(ours), name


# ------------------------------------------------------------------------------------------------ operators


def run(node, inputs, initializers):
    """The output of a model of one node.

    Args:
        node: Operator, domain and attributes.
        inputs: Arrays by name.
        initializers: Name, element type, shape and bytes of each tensor, in the order of the node's inputs.
    """
    names = [*inputs, *(name for name, *_ in initializers)]
    operator, domain, attributes = node
    if operator == "GatherBlockQuantized":  # its indices come second
        names = [names[1], names[0], *names[2:]]
    helper = onnx.helper
    kinds = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in inputs.items()}
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], domain=domain, **attributes)],
        "g",
        [helper.make_tensor_value_info(n, kinds[n], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info("y", initializers[1][1], None)],
        [helper.make_tensor(n, kind, shape, bytes(data), raw=True) for n, kind, shape, data in initializers],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], inputs)[0]


def initializers(parts, shapes, kinds):
    return list(zip(("w", "s", "z"), kinds, shapes, (part.tobytes() for part in parts), strict=False))


OPERATED = [
    ir.onnx_affine(bits, size, scale_type, symmetric=symmetric)
    for bits in (4, 8)
    for size in (16, 32, 256)
    for scale_type in (ir.F32, ir.F16)
    for symmetric in (True, False)
]
some_encodings = pytest.mark.parametrize("encoding", OPERATED, ids=lambda e: e.name)


def blocks_of(encoding):
    weights = (normal(np.random.default_rng(0)) * 0.02 + 0.005).astype(encoding.scale_type.dtype)
    return encode(weights, encoding)


def kind_of(encoding):
    return onnx.helper.np_dtype_to_tensor_dtype(encoding.scale_type.dtype)


@some_encodings
def test_matmul_nbits_gives_the_weights_back(encoding):
    blocks, (rows, columns) = blocks_of(encoding), SHAPE
    per_row, size = columns // encoding.block_size, encoding.block_size * encoding.bits // 8
    tensors = initializers(
        packing.pack(blocks, columns),
        [(rows, per_row, size), (rows, per_row), (rows, -(-per_row * encoding.bits // 8))],
        [onnx.TensorProto.UINT8, kind_of(encoding), onnx.TensorProto.UINT8],
    )
    attributes = {"K": columns, "N": rows, "bits": encoding.bits, "block_size": encoding.block_size}
    x = np.eye(columns, dtype=encoding.scale_type.dtype)
    y = run(("MatMulNBits", "com.microsoft", attributes), {"x": x}, tensors)
    tolerance = 1e-6 if encoding.scale_type == ir.F32 else 1e-3
    np.testing.assert_allclose(y.T.astype(f32), decode(blocks, columns), rtol=tolerance, atol=tolerance / 100)


def gathered(encoding, tensors, **attributes):
    attributes |= {"block_size": encoding.block_size, "gather_axis": 0, "quantize_axis": 1}
    ids = np.arange(SHAPE[0])
    return run(("GatherBlockQuantized", "com.microsoft", attributes), {"ids": ids}, tensors)


@some_encodings
def test_gather_gives_the_weights_back(encoding):
    blocks, (rows, columns) = blocks_of(encoding), SHAPE
    per_row = columns // encoding.block_size
    tensors = initializers(
        packing.pack(blocks, columns),
        [(rows, columns * encoding.bits // 8), (rows, per_row), (rows, -(-per_row * encoding.bits // 8))],
        [onnx.TensorProto.UINT8, kind_of(encoding), onnx.TensorProto.UINT8],
    )
    y = gathered(encoding, tensors, bits=encoding.bits)
    np.testing.assert_array_equal(y, decode(blocks, columns).astype(encoding.scale_type.dtype))


@pytest.mark.parametrize("symmetric", [True, False])
def test_gather_of_int4_gives_the_weights_back(symmetric):
    encoding = ir.onnx_affine(4, 32, ir.F32, symmetric=symmetric, method="gather")
    blocks, (rows, columns) = blocks_of(encoding), SHAPE
    kind = INT4 if symmetric else UINT4
    shapes = [(rows, columns), (rows, columns // 32), (rows, columns // 32)]
    tensors = initializers(pack_integers(blocks), shapes, [kind, kind_of(encoding), UINT4])
    np.testing.assert_array_equal(gathered(encoding, tensors), decode(blocks, columns))


@pytest.mark.parametrize("scale_type", [ir.F32, ir.F16], ids=lambda t: t.name)
@pytest.mark.parametrize("symmetric", [True, False])
def test_dequantize_linear_gives_the_weights_back(symmetric, scale_type):
    encoding = ir.onnx_affine(4, 32, scale_type, symmetric=symmetric, method="qdq")
    blocks, (rows, columns) = blocks_of(encoding), SHAPE
    kind = INT4 if symmetric else UINT4
    shapes = [(columns, rows), (columns // 32, rows), (columns // 32, rows)]
    tensors = initializers(packing.pack_columns(blocks, columns), shapes, [kind, kind_of(encoding), UINT4])
    y = run(("DequantizeLinear", "", {"axis": 0, "block_size": 32}), {}, tensors)
    np.testing.assert_array_equal(y.T, decode(blocks, columns).astype(scale_type.dtype))


@pytest.mark.parametrize(("stored", "bits"), [(ir.Q4_0, 4), (ir.Q8_0, 8)], ids=["q4_0", "q8_0"])
def test_blocks_of_llama_cpp_are_computed_with(stored, bits):
    blocks = encode((normal(np.random.default_rng(0)) * 0.02).astype(f32), stored)
    encoding, (rows, columns) = ir.onnx_affine(bits, 32, ir.F32), SHAPE
    tensors = initializers(
        packing.pack(repack(blocks, encoding), columns),
        [(rows, columns * bits // 8), (rows, columns // 32)],
        [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT],
    )
    np.testing.assert_array_equal(gathered(encoding, tensors, bits=bits), decode(blocks, columns))
