"""Quantized matrices in ONNX's own operators: their bytes, their nodes, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import phiconv
from memory_rows import in_memory
from paths import FIXTURES
from phiconv import ir
from phiconv.errors import MalformedFileError, PhiconvError, UsageError
from phiconv.quantizers import decode, encode
from phiconv.recipes import override
from phiconv_formats.onnx.graph import DATA_TYPES, Graph
from phiconv_formats.onnx.integers import element_type, pack_integers, row_sizes, unpack_integers
from phiconv_formats.onnx.standard import product, rows
from phiconv_formats.onnx.store import Store
from phiconv_formats.shared.output import OutputTensor

ENCODINGS = ir.ONNX_AFFINE["qdq"]
few = settings(max_examples=4, deadline=None)
every_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)


def random_blocks(encoding, count, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << encoding.bits, (encoding.block_size // 4, count, 4), dtype=np.uint8)
    scales = rng.standard_normal(count).astype(encoding.scale_type.dtype)
    zeros = rng.integers(0, 1 << encoding.bits, count, dtype=np.uint8) if encoding.has_zero_point else None
    return ir.Blocks(encoding, codes, scales, zero_points=zeros)


@every_encoding
@few
@given(row_count=st.integers(0, 5), per_row=st.integers(1, 5), seed=st.integers(0, 1 << 32))
def test_unpack_is_the_inverse(encoding, row_count, per_row, seed):
    blocks = random_blocks(encoding, row_count * per_row, seed)
    parts = pack_integers(blocks)
    sizes = [-(-size * row_count // n) for size, n in row_sizes(encoding, per_row * encoding.block_size)]
    assert [part.size for part in parts] == sizes
    back = unpack_integers(encoding, *(part.tobytes() for part in parts))
    assert np.array_equal(back.codes, blocks.codes)
    assert back.scales.tobytes() == blocks.scales.tobytes()
    assert (back.zero_points is None) == (blocks.zero_points is None)
    assert back.zero_points is None or np.array_equal(back.zero_points, blocks.zero_points)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_refuses_tensors_that_do_not_belong_together(part):
    encoding = ENCODINGS[1]
    parts = [p[:-1] if i == part else p for i, p in enumerate(pack_integers(random_blocks(encoding, 4)))]
    with pytest.raises(MalformedFileError, match="bytes are no blocks of"):
        unpack_integers(encoding, *parts)


def test_refuses_what_is_no_integers():
    for values in (np.zeros((1, 32), np.float32), encode(np.zeros((1, 256), np.float32), ir.Q4_K)):
        with pytest.raises(UsageError, match="no integers with a scale"):
            pack_integers(values)
    with pytest.raises(UsageError, match="rows of 40 weights cannot be cut"):
        row_sizes(ENCODINGS[0], 40)


# -------------------------------------------------------------------------------------------------- the nodes


class Whole(Graph):
    """A graph with its weights inside, which ONNX's reference implementation can evaluate."""

    parts = ()

    def weight(self, name, data_type, shape, place, notes=None):
        assert not notes
        index = [segment.offset for segment in self.segments].index(place[1])
        assert place[2] == self.parts[index].size
        data = self.parts[index].tobytes()
        self._initializers[name] = onnx.helper.make_tensor(name, data_type, shape, data, raw=True)
        return name


def matrix(encoding, row_count, columns):
    """A graph, the store of one matrix, and its weights."""
    values = (np.random.default_rng(3).standard_normal((row_count, columns)) + 0.2).astype(np.float32)
    store = Store("data", [OutputTensor("w", in_memory(values), None)], [encoding])
    blocks = encode(values.astype(encoding.scale_type.dtype), encoding)
    graph = Whole(21, 10)
    graph.parts, graph.segments = store.streams[0].pack(blocks), store.streams[0].segments
    return graph, store, decode(blocks, columns)


SMALL = [e for e in ENCODINGS if e.block_size in (16, 64) and e.scale_type == ir.F32]


@pytest.mark.parametrize("encoding", SMALL, ids=lambda e: e.name)
@pytest.mark.parametrize("row_count", [7, 8])
def test_a_product_is_that_of_the_weights(encoding, row_count):
    """Three blocks to a row: with 4 bits, zero points of a row end within a byte."""
    columns = 3 * encoding.block_size
    graph, store, weights = matrix(encoding, row_count, columns)
    graph.input("x", DATA_TYPES[encoding.scale_type], ["batch", "length", columns])
    y = product(graph, store, "x", "w", "/w", "y")
    graph.output(y, DATA_TYPES[encoding.scale_type], ["batch", "length", row_count])
    model = onnx.load_from_string(graph.finish())
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert {t.data_type for t in model.graph.initializer if t.name == "w_Q" + str(encoding.bits)} == {
        element_type(encoding)
    }
    x = np.random.default_rng(1).standard_normal((2, 3, columns)).astype(encoding.scale_type.dtype)
    (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weights.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoding", [e for e in SMALL if e.bits == 8], ids=lambda e: e.name)
def test_rows_are_looked_up(encoding):
    columns = 3 * encoding.block_size
    graph, store, weights = matrix(encoding, 9, columns)
    graph.input("ids", TensorProto.INT64, ["batch", "length"])
    y = rows(graph, store, "w", "ids", "/w")
    graph.output(y, TensorProto.FLOAT, ["batch", "length", columns])
    model = onnx.load_from_string(graph.finish())
    onnx.checker.check_model(model, full_check=True)
    ids = np.array([[8, 0, 3], [1, 1, 7]])
    (found,) = ReferenceEvaluator(model).run(None, {"ids": ids})
    np.testing.assert_array_equal(found, weights[ids])


# ------------------------------------------------------------------------------------------------- the models


def convert(source, folder, quant, **options):
    return phiconv.convert(source, folder, to="onnx", quant=quant, choices=phiconv.Choices(**options))


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["phi", "phi3-gqa", "phi4mini"])
def test_products_and_the_embedding_are_in_onnx_s_own_operators(model_folder, tmp_path, kind, target):
    types = (override("down_proj=f32"),) if target == "cpu" else ()
    convert(model_folder(kind), tmp_path / "m", "int4-qdq-asym", target=target, tensor_types=types)
    graph = onnx.load(str(tmp_path / "m" / "model.onnx"), load_external_data=False).graph
    found = {node.op_type for node in graph.node if node.domain}
    assert found <= {
        "GroupQueryAttention",
        "QuickGelu",
        "RotaryEmbedding",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
    assert len([node for node in graph.node if node.op_type == "MatMul"]) > 4
    types = {t.data_type for t in graph.initializer if t.name.endswith(("_Q4", "_Q8"))}
    assert types == {TensorProto.UINT4, TensorProto.INT8}
    if target == "cpu":
        onnx.checker.check_model(str(tmp_path / "m" / "model.onnx"))


def test_a_tied_matrix_is_stored_once(tmp_path):
    for options in ({}, {"match_runtime": True}):
        result = convert(FIXTURES / "tiny-phi4mini", tmp_path / f"m{len(options)}", "int4-qdq", **options)
        found = {s.name: s.encoding.name for s in result.plan.package.streams}
        assert "lm_head.MatMul.weight" not in found
        assert found["model.embed_tokens.weight"] == "onnx_int8_qdq_g32_f32"


@pytest.mark.parametrize("level", [None, 0, 4])
def test_accuracy_is_a_setting_of_the_session(tmp_path, level):
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", "int4-qdq", accuracy_level=level)
    config = json.loads((tmp_path / "m" / "genai_config.json").read_text())
    settings = config["model"]["decoder"]["session_options"]
    assert settings.get("session.qdq_matmulnbits_accuracy_level") == (None if level is None else str(level))


def test_an_embedding_of_4_bits_is_refused(model_folder, tmp_path):
    with pytest.raises(PhiconvError, match="look no rows of 4 bits up"):
        convert(model_folder("phi3"), tmp_path / "m", "int4-qdq", tensor_types=(override("embed=int4-qdq"),))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("quant", "level", "operator"),
    [("int4-qdq", None, "MatMul"), ("int8", 0, "MatMulNBits"), ("int8", None, "QMoE"), ("int4", 0, "QMoE")],
)
def test_experts_have_products_of_their_own_where_no_operator_will_do(
    model_folder, tmp_path, quant, level, operator
):
    result = convert(model_folder("phimoe"), tmp_path / "m", quant, accuracy_level=level)
    graph = onnx.load(str(tmp_path / "m" / "model.onnx"), load_external_data=False).graph
    count = result.plan.model.hyperparameters.experts.count
    used = [node for node in graph.node if node.op_type == operator and "/moe/" in node.name]
    used = [node for node in used if "router" not in node.name]
    layers = result.plan.model.hyperparameters.num_hidden_layers
    assert len(used) == layers * (1 if operator == "QMoE" else 2 * count)
    places = {}
    for tensor in graph.initializer:
        if ".experts.1." in tensor.name:
            places[tensor.name] = {entry.key: entry.value for entry in tensor.external_data}
    assert bool(places) == (operator != "QMoE")
    for name, place in places.items():  # a stack is one tensor of the file
        first = next(t for t in graph.initializer if t.name == name.replace(".experts.1.", ".experts.0."))
        start = next(int(e.value) for e in first.external_data if e.key == "offset")
        assert int(place["offset"]) == start + int(place["length"])
