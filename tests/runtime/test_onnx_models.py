"""ONNX models: ONNX Runtime computes with them as transformers does."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest

import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.ir.model import Role
from phiconv.quantizers import decode
from phiconv.recipes.onnx import RECIPES
from phiconv_formats.onnx import packing
from phiconv_formats.onnx.integers import is_standard, unpack_integers
from references import RANDOM, open_reference, random_model, relative_l2

pytestmark = pytest.mark.runtime


def convert(source, folder, quant, **choices):
    return phiconv.convert(source, folder, to="onnx", quant=quant, choices=phiconv.Choices(**choices))


@dataclass
class Session:
    """A model in ONNX Runtime, on the processor."""

    session: object

    def run(self, ids, past=None, mask=None):
        """Logits and cache; ``past`` is the cache of the tokens before."""
        (batch, length), before = ids.shape, 0 if past is None else past[0].shape[2]
        mask = np.ones((batch, before + length), np.int64) if mask is None else mask
        feeds = {"input_ids": ids.astype(np.int64), "attention_mask": mask}
        inputs = {i.name: i for i in self.session.get_inputs()}
        if "position_ids" in inputs:
            feeds["position_ids"] = np.tile(np.arange(before, before + length), (batch, 1))
        names = [name for name in inputs if name.startswith("past")]
        for i, name in enumerate(names):
            _, heads, _, width = inputs[name].shape
            dtype = np.float32 if inputs[name].type == "tensor(float)" else np.float16
            feeds[name] = np.zeros((batch, heads, 0, width), dtype) if past is None else past[i]
        logits, *cache = self.session.run(None, feeds)
        return logits, cache


@pytest.fixture
def load(ort):
    def open_folder(folder, *, check=True, optimized=None):
        if check:  # ONNX Runtime's own SimplifiedLayerNormalization stands in ONNX's domain
            onnx.checker.check_model(str(folder / "model.onnx"))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        config = json.loads((folder / "genai_config.json").read_text())
        for key, value in config["model"]["decoder"]["session_options"].items():
            if key.startswith("session."):
                options.add_session_config_entry(key, value)
        path = str(folder / "model.onnx")
        return Session(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))

    return open_folder


# ------------------------------------------------------------------------------------------------ unquantized


@pytest.mark.parametrize("name", RANDOM)
def test_logits_are_those_of_transformers(load, make_model, make_models, tmp_path, name):
    kept = open_reference(f"references/{name}.npz")
    convert(random_model(make_model, make_models, tmp_path / "s", name), tmp_path / "m", "f32")
    logits, _ = load(tmp_path / "m").run(kept["input_ids"][None])
    assert relative_l2(logits[0, kept["positions"]], kept["logits"]) < 3e-6
    assert (logits[0].argmax(axis=-1) == kept["argmax"]).all()


@pytest.mark.parametrize("quant", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_trained_models(load, tmp_path, name, quant):
    """Weights of 16 bits are computed with in float32."""
    kept = open_reference(f"{name}/reference.npz")
    convert(FIXTURES / name, tmp_path / "m", quant)
    session = load(tmp_path / "m")
    logits, _ = session.run(kept["input_ids"][:2])
    assert relative_l2(logits, kept["logits_f32"]) < 2e-6
    logits, _ = session.run(kept["long_input_ids"])  # 768 tokens: tiny-phi4mini's original context is 512
    assert relative_l2(logits[:, -32:], kept["long_logits_last32_f32"]) < 5e-6


@pytest.mark.parametrize("kind", ["phi3-su", "phi4mini", "phimoe"])
def test_long_texts_take_the_long_factors(load, model_folder, tmp_path, kind):
    convert(model_folder(kind), tmp_path / "m", "f32")
    session = load(tmp_path / "m")
    for length in (512, 513):
        ids = np.arange(length)[None] * 37 % 2000
        assert relative_l2(session.run(ids)[0], phiconv.logits(model_folder(kind), ids)) < 1e-5


@pytest.mark.parametrize("kind", ["phi2", "phi3", "phi4mini", "phimoe"])
def test_cache_and_padding_change_nothing(load, model_folder, tmp_path, kind):
    convert(model_folder(kind), tmp_path / "m", "f32")
    session, ids = load(tmp_path / "m"), np.arange(40, 64)[None]
    expected, _ = session.run(ids)
    first, cache = session.run(ids[:, :15])
    second, _ = session.run(ids[:, 15:], cache)
    assert relative_l2(np.concatenate([first, second], axis=1), expected) < 3e-6
    mask = np.arange(24) < np.array([[24], [17]])
    both, _ = session.run(np.repeat(ids, 2, axis=0), mask=mask.astype(np.int64))
    assert relative_l2(both[0], expected[0]) < 3e-6
    assert relative_l2(both[1, :17], expected[0, :17]) < 3e-6


@pytest.mark.parametrize("kind", ["tiny-phi3", "tiny-phi4mini"])
def test_rows_padded_at_the_left_are_off(load, tmp_path, kind):
    """As with every graph of this attention; the documentation says so, and what to do."""
    convert(FIXTURES / kind, tmp_path / "m", "int4")
    session, ids = load(tmp_path / "m"), np.arange(300, 316)[None]
    alone, _ = session.run(ids[:, :12])
    for start, right in ((0, True), (4, False)):
        row = slice(start, start + 12)
        both, mask = np.repeat(ids, 2, axis=0), np.ones((2, 16), np.int64)
        both[1], mask[1] = 2, 0
        both[1, row], mask[1, row] = ids[0, :12], 1
        logits, _ = session.run(both, mask=mask)
        error = relative_l2(logits[1, row], alone[0])
        assert error < 1e-5 if right else error > 0.1


@pytest.mark.parametrize("target", ["cuda", "dml", "webgpu"])
@pytest.mark.parametrize("kind", ["phi", "phi3", "phi3-su", "phi4mini"])
def test_graphs_of_other_targets_are_right_in_float16(load, model_folder, tmp_path, target, kind):
    """They run on a processor, too; how they do on what they are for cannot be tested here."""
    folder = model_folder(kind)
    convert(folder, tmp_path / "m", "f16", target=target)
    session = load(tmp_path / "m", check=False)
    for length in (32, 520):  # LongRoPE's factors change after 512
        ids = np.arange(length)[None] * 37 % 2000
        assert relative_l2(session.run(ids)[0], phiconv.logits(folder, ids)) < 5e-3


# -------------------------------------------------------------------------------------------------- quantized


@dataclass(frozen=True)
class WrittenRows:
    """The weights of a stream as they stand in the file (an `ir.Source`)."""

    folder: object
    stream: object
    encoding: ir.Encoding = ir.F32
    label: str = "written"

    def read(self, start, stop):
        parts = []
        if is_standard(self.stream.encoding):  # a row may end within a byte
            return self.whole()[start:stop]
        for segment in self.stream.segments:
            count, at = (stop - start) * segment.row_bytes, segment.offset + start * segment.row_bytes
            parts.append(np.fromfile(self.folder / segment.file, np.uint8, count, offset=at))
        columns = self.stream.tensor.columns
        return decode(packing.unpack(self.stream.encoding, columns, *parts), columns)

    def whole(self):
        parts, rows = [], self.stream.tensor.rows
        for segment in self.stream.segments:
            count = -(-rows * segment.row_bytes // segment.rows)
            parts.append(np.fromfile(self.folder / segment.file, np.uint8, count, offset=segment.offset))
        return decode(unpack_integers(self.stream.encoding, *parts), self.stream.tensor.columns)

    def changed(self):
        return False


def as_written(result, folder):
    """The source's model with the weights that the output holds."""
    model = result.plan.model
    tensors = dict(model.tensors)
    for stream in result.plan.package.streams:
        whole = ir.Tensor.of(WrittenRows(folder, stream), (stream.tensor.rows, stream.tensor.columns))
        for role, rows in parts(stream.name, model, whole):
            tensors[role] = rows.reshape(tensors[role].shape)
    return replace(model, tensors=tensors)


def parts(name, model, whole):
    """The weights of the model that a matrix of the output is made of."""
    if not name.endswith((".MatMul.weight", "embed_tokens.weight")):
        return
    layer = int(name.split(".")[2]) if ".layers." in name else None
    if "gate_up" in name:
        for offset, role in enumerate(("experts_gate", "experts_up")):
            runs = [whole.slice_rows(i, i + 1) for i in range(offset, whole.rows, 2)]
            yield Role(role, layer), ir.concatenate(runs)
        return
    roles = {
        "qkv_proj": ["attn_q", "attn_k", "attn_v"],
        "q_proj": ["attn_q"],
        "k_proj": ["attn_k"],
        "v_proj": ["attn_v"],
        "o_proj": ["attn_output"],
        "gate_proj": ["ffn_gate"],
        "up_proj": ["ffn_up"],
        "down_proj": ["experts_down" if "experts" in name else "ffn_down"],
        "router": ["router"],
        "lm_head": ["output"],
        "embed_tokens": ["token_embedding"],
    }[name.removesuffix(".MatMul.weight").removesuffix(".weight").rpartition(".")[2]]
    start = 0
    for role in roles:
        rows = model.tensors[Role(role, layer)].rows
        yield Role(role, layer), whole.slice_rows(start, start + rows)
        start += rows


def check_as_written(load, source, folder, quant, bound=1e-5, **choices):
    """ONNX Runtime computes what NumPy computes with the weights that are in the file."""
    result = convert(source, folder, quant, accuracy_level=0, **choices)
    ids = np.arange(40, 72)[None]
    logits, _ = load(folder).run(ids)
    assert relative_l2(logits, phiconv.logits(as_written(result, folder), ids)) < bound
    return result


@pytest.fixture(scope="module")
def wide(make_model, tmp_path_factory):
    """A model of one layer whose rows divide into the largest blocks."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    return make_model(tmp_path_factory.mktemp("wide") / "m", "phi3", seed=7, **sizes)


@pytest.mark.parametrize("quant", [name for name in RECIPES.names() if "a16" not in name])
def test_every_recipe(load, wide, tmp_path, quant):
    result = check_as_written(load, wide, tmp_path / "m", quant, 5e-6)
    sizes = {e.block_size for e in (s.encoding for s in result.plan.package.streams)}
    assert sizes <= {1, RECIPES.read(quant).group}


@pytest.mark.parametrize("quant", ["int4", "int4-k_quant", "int8-asym-g128"])
def test_every_scheme_on_a_trained_model(load, tmp_path, quant):
    check_as_written(load, FIXTURES / "tiny-phi4mini", tmp_path / "m", quant)


@pytest.mark.parametrize("quant", ["int4", "int4-asym", "int4-k_quant_mixed-g16", "int4-g128"])
@pytest.mark.parametrize("kind", ["phi", "phi3", "phi3-gqa", "phi4mini", "phimoe"])
def test_every_kind_of_model(load, model_folder, tmp_path, kind, quant):
    check_as_written(load, model_folder(kind), tmp_path / "m", quant, 5e-5 if kind == "phimoe" else 1e-5)


@pytest.mark.parametrize("quant", ["int4", "int8-asym", "int4-qdq-asym", "int8-qdq"])
@pytest.mark.parametrize("target", ["cuda", "dml"])
def test_blocks_of_other_targets_are_right_in_float16(load, model_folder, tmp_path, target, quant):
    result = convert(model_folder("phi4mini"), tmp_path / "m", quant, target=target, accuracy_level=0)
    ids = np.arange(40, 72)[None]
    logits, _ = load(tmp_path / "m", check=False).run(ids)
    assert logits.dtype == np.float16
    assert relative_l2(logits, phiconv.logits(as_written(result, tmp_path / "m"), ids)) < 5e-3


@pytest.mark.parametrize("kind", ["phi", "phi3", "phi4mini"])
def test_the_choices_of_the_runtime(load, model_folder, tmp_path, kind):
    result = check_as_written(load, model_folder(kind), tmp_path / "m", "int4", match_runtime=True)
    kept = {s.name: s.encoding.name for s in result.plan.package.streams}
    assert kept["model.embed_tokens.weight"] == ("onnx_int4_g32_f32" if kind == "phi4mini" else "f32")


@pytest.mark.parametrize("quant", ["int8", "int8-asym-g16", "int4-qdq", "int4-qdq-asym-g16", "int8-qdq"])
def test_experts_one_by_one(load, model_folder, tmp_path, quant):
    """Where ONNX Runtime's operator would round activations, and where there shall be none."""
    check_as_written(load, model_folder("phimoe"), tmp_path / "m", quant)
    session = load(tmp_path / "m")
    whole, _ = session.run(np.arange(40, 46)[None])
    _, cache = session.run(np.arange(40, 45)[None])
    last, _ = session.run(np.array([[45]]), cache)  # most experts have no token
    assert relative_l2(last[0, 0], whole[0, -1]) < 1e-5
    both, _ = session.run(np.repeat(np.arange(40, 46)[None], 2, axis=0))
    assert relative_l2(both[1], whole[0]) < 1e-5


@pytest.mark.parametrize("quant", ["int4-qdq", "int4-qdq-asym-g16", "int8-qdq-g128", "int8-qdq-asym"])
@pytest.mark.parametrize("kind", ["phi", "phi3-gqa", "phi4mini"])
def test_the_runtime_makes_its_own_products_of_standard_operators(load, model_folder, tmp_path, kind, quant):
    """It multiplies with integers, also where rows have an odd number of blocks."""
    check_as_written(load, model_folder(kind), tmp_path / "m", quant)
    load(tmp_path / "m", optimized=tmp_path / "optimized.onnx")
    optimized = onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False).graph.node
    found = Counter(node.op_type for node in optimized)
    written = onnx.load(str(tmp_path / "m" / "model.onnx"), load_external_data=False).graph.node
    assert found["MatMulNBits"] == sum(node.op_type == "MatMul" for node in written)
    assert not {"MatMul", "FusedMatMul", "Transpose"} & set(found)


def test_products_round_activations_by_default(load, tmp_path):
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", "int4")
    convert(FIXTURES / "tiny-phi3", tmp_path / "e", "int4", accuracy_level=0)
    ids = np.arange(40, 72)[None]
    a, b = (load(tmp_path / name).run(ids)[0] for name in "me")
    assert 1e-4 < relative_l2(a, b) < 0.05


def test_blocks_of_a_gguf_are_taken_over(load, tmp_path):
    """Q4_0 is symmetric int4 in blocks of 32: no weight changes, and both compute the same."""
    phiconv.convert(
        FIXTURES / "tiny-phi3", tmp_path / "a.gguf", quant="Q4_0", choices=phiconv.Choices(pure=True)
    )
    convert(tmp_path / "a.gguf", tmp_path / "m", "int4", accuracy_level=0)
    ids = np.arange(40, 72)[None]
    assert relative_l2(load(tmp_path / "m").run(ids)[0], phiconv.logits(tmp_path / "a.gguf", ids)) < 1e-5
