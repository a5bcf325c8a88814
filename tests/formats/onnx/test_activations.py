"""Products of integers: recipes w8a16 and w4a16, which need ranges of activations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import InputError, UsageError
from phiconv.recipes import override

SOURCE = FIXTURES / "tiny-phi4mini"
IDS = np.arange(512) * 37 % 2000


@pytest.fixture(scope="module")
def ranges(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranges") / "ranges.json"
    return phiconv.calibrate(SOURCE, IDS, path, context=128, tokens=512)


def convert(source, folder, quant, ranges=None, **choices):
    choices = phiconv.Choices(**{"target": "qnn", "context": 128} | choices)
    return phiconv.convert(source, folder, to="onnx", quant=quant, ranges=ranges, choices=choices)


@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("quant", ["w8a16", "w4a16"])
def test_every_product_of_the_layers_is_one_of_integers(tmp_path, ranges, quant, attention):
    convert(SOURCE, tmp_path / "m", quant, ranges, attention=attention)
    onnx.checker.check_model(str(tmp_path / "m" / "context.onnx"))
    graph = onnx.load(str(tmp_path / "m" / "context.onnx"), load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 4 * (5 if any("qkv" in n.name for n in products) else 7)
    for node in products:
        assert {makers[name].op_type for name in node.input} == {"DequantizeLinear"}
        assert readers[node.output[0]].op_type == "QuantizeLinear"
    caches = [v for v in graph.input if v.name.startswith("past_key_values")]
    assert {v.type.tensor_type.elem_type for v in caches} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("quant", ["w8a16", "w4a16"])
def test_such_a_folder_is_a_source(tmp_path, ranges, quant):
    convert(SOURCE, tmp_path / "m", quant, ranges)
    expected, found = (phiconv.logits(path, IDS[None, :40]) for path in (SOURCE, tmp_path / "m"))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < (0.01 if quant == "w8a16" else 0.1)
    again = convert(tmp_path / "m", tmp_path / "n", quant, ranges)
    assert {tensor.action for tensor in again.plan.tensors} <= {"copied", "widened"}
    names = "model.onnx.data"
    assert (tmp_path / "m" / names).read_bytes() == (tmp_path / "n" / names).read_bytes()


def test_single_matrices_may_have_more_bits(tmp_path, ranges):
    kinds = (override("v_proj=w8a16"), override("down_proj=int8"))
    result = convert(SOURCE, tmp_path / "m", "w4a16", ranges, tensor_types=kinds)
    found = {t.name: t.encoding.name for t in result.plan.tensors}
    assert found["model.layers.0.mlp.down_proj.MatMul.weight"] == "onnx_int8_g32_f32"
    assert found["model.layers.0.mlp.up_proj.MatMul.weight"] == "onnx_int4_channel_g256"


@pytest.mark.parametrize(
    ("quant", "choices", "given", "says"),
    [
        ("w8a16", {}, False, "phiconv calibrate"),
        ("w8a16", {"target": None, "context": None}, True, "--target qnn"),
        ("int4", {}, True, "--ranges means nothing"),
        ("int4", {"tensor_types": (override("v_proj=w8a16"),)}, True, "graphs of float32"),
        ("w8a16", {"tensor_types": (override("lm_head|embed=w8a16"),)}, True, "no activations"),
    ],
)
def test_refusals(tmp_path, ranges, quant, choices, given, says):
    with pytest.raises(UsageError, match=says):
        convert(SOURCE, tmp_path / "m", quant, ranges if given else None, **choices)
    assert not [*tmp_path.iterdir()]


def test_ranges_of_another_model_are_refused(tmp_path, ranges):
    with pytest.raises(InputError, match="another model"):
        convert(FIXTURES / "tiny-phi3", tmp_path / "m", "w8a16", ranges)


def test_biases_are_added_behind(model_folder, tmp_path):
    ranges = phiconv.calibrate(model_folder("phi"), IDS, tmp_path / "r.json", context=128, tokens=512)
    convert(model_folder("phi"), tmp_path / "m", "w8a16", ranges)
    onnx.checker.check_model(str(tmp_path / "m" / "context.onnx"))
    expected, found = (phiconv.logits(path, IDS[None, :40]) for path in (model_folder("phi"), tmp_path / "m"))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.02
