"""The ONNX writer: the graph, the file of weights, GenAI's settings, and refusals; no runtime is needed."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import phiconv
from paths import FIXTURES
from phiconv.errors import PhiconvError
from phiconv.forward import layers
from phiconv.forward.ops import MixtureOfExperts
from phiconv.recipes import override
from phiconv_formats.onnx.experts import sparse_mixer
from phiconv_formats.onnx.graph import Graph

KINDS = ["phi", "phi2", "phi3-gqa", "phi4mini", "phimoe-stacked"]


def convert(source, folder, quant, **options):
    return phiconv.convert(source, folder, to="onnx", quant=quant, choices=phiconv.Choices(**options))


def graph_of(folder):
    return onnx.load(str(folder / "model.onnx"), load_external_data=False).graph


def operators(folder):
    return [node.op_type for node in graph_of(folder).node]


def external(graph):
    """Place and size of every tensor in the file of weights."""
    found = {}
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            assert entries["location"] == "model.onnx.data"
            found[tensor.name] = (int(entries["offset"]), int(entries["length"]), tensor)
    return found


def encodings(result):
    return {s.name: s.encoding.name for s in result.plan.package.streams}


# -------------------------------------------------------------------------------------------------- the files


def test_folder_has_everything(tmp_path):
    result = convert(FIXTURES / "tiny-phi3", tmp_path / "m", "q4")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {".phiconv.json", "receipt.json", *(p.name for p in result.files)}
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= names
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (tmp_path / "m" / "chat_template.jinja").read_text()
    assert settings["model_max_length"] == result.plan.model.hyperparameters.max_position_embeddings


def test_plan_is_exact(tmp_path):
    made = phiconv.plan(FIXTURES / "tiny-phi4mini", tmp_path / "m", to="onnx", quant="int4-asym")
    result = convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", "int4-asym")
    assert [(p.name, p.stat().st_size) for p in result.files] == [
        (f.name, f.size) for f in made.package.files
    ]


def test_bytes_do_not_depend_on_threads(tmp_path):
    for jobs in (1, 3):
        phiconv.convert(FIXTURES / "tiny-phi4mini", tmp_path / str(jobs), to="onnx", quant="int4", jobs=jobs)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "3" / path.name).read_bytes()


def test_a_file_brings_its_others_along(tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "small.onnx", quant="q8")
    config = json.loads((tmp_path / "genai_config.json").read_text())
    assert config["model"]["decoder"]["filename"] == "small.onnx"
    assert (tmp_path / "small.onnx.data").exists()
    onnx.checker.check_model(str(tmp_path / "small.onnx"))


def test_tokenizer_is_written_where_the_source_has_no_such_file(tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "a.gguf", quant="f16")
    convert(tmp_path / "a.gguf", tmp_path / "m", "f16")
    assert "vocab" in json.loads((tmp_path / "m" / "tokenizer.json").read_text())["model"]


@pytest.mark.parametrize("quant", ["f32", "f16", "int4", "int8-asym", "int4-k_quant_mixed-g16"])
@pytest.mark.parametrize("kind", KINDS)
def test_checker_accepts_every_graph(model_folder, tmp_path, kind, quant):
    convert(model_folder(kind), tmp_path / "m", quant)
    onnx.checker.check_model(str(tmp_path / "m" / "model.onnx"))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_lie_in_their_file_without_overlap(model_folder, tmp_path, kind):
    convert(model_folder(kind), tmp_path / "m", "int4-asym")
    size = (tmp_path / "m" / "model.onnx.data").stat().st_size
    end = 0
    shared = {}
    for name, (offset, length, tensor) in sorted(external(graph_of(tmp_path / "m")).items(), key=str):
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        assert offset % 4096 == 0
        assert length == int(np.prod(tensor.dims)) * width
        assert shared.setdefault(offset, length) == length, name
    for offset, length in sorted(shared.items()):
        assert offset >= end
        end = offset + length
    assert end == size


def test_a_tied_matrix_is_stored_once(tmp_path):
    for quant in ("int4", "f32"):
        result = convert(FIXTURES / "tiny-phi4mini", tmp_path / quant, quant)
        assert "lm_head.MatMul.weight" not in encodings(result)
        graph = graph_of(tmp_path / quant)
        places = external(graph)
        names = [name for name in places if name.startswith("model.embed_tokens.weight")]
        assert len({places[name][0] for name in names}) == (2 if quant == "int4" else 1)
        head = next(node for node in graph.node if "logits" in node.output)
        assert head.input[1] in names


# ------------------------------------------------------------------------------------------------- the graph


def test_residual_sums_are_taken_along_by_norms(tmp_path):
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", "int4")
    found, layers_ = operators(tmp_path / "m"), 6
    assert found.count("RMSNormalization") == 1
    assert found.count("SkipSimplifiedLayerNormalization") == 2 * layers_
    assert found.count("GroupQueryAttention") == layers_
    assert found.count("MatMulNBits") == 5 * layers_ + 1
    assert "Add" not in found
    last = [n for n in graph_of(tmp_path / "m").node if n.op_type.startswith("Skip")][-1]
    assert len(last.output) == 1  # nobody reads its sum


@pytest.mark.parametrize(("target", "operator"), [("cpu", "Slice"), ("cuda", "Identity")])
def test_longrope_chooses_between_tables_in_the_file(tmp_path, target, operator):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", "int4", target=target)
    graph = graph_of(tmp_path / "m")
    (choice,) = [n for n in graph.node if n.op_type == "If"]
    for branch in choice.attribute:
        assert [n.op_type for n in branch.g.node] == [operator, operator]
    hp = phiconv.open_model(FIXTURES / "tiny-phi4mini").hyperparameters
    rows = {name: t.dims[0] for name, (_, _, t) in external(graph).items() if "cache" in name}
    assert set(rows.values()) == {hp.rope.original_context, hp.max_position_embeddings}
    result = convert(FIXTURES / "tiny-phi4mini", tmp_path / "s", "int4", short_context=True)
    assert "If" not in operators(tmp_path / "s")
    assert "cos_cache" in encodings(result)


def test_tables_are_those_of_the_interpreter(tmp_path):
    made = phiconv.plan(FIXTURES / "tiny-phi4mini", tmp_path / "m", to="onnx", quant="f32")
    tables = {s.name: s.tensor for s in made.package.streams if "cache" in s.name}
    rope = made.model.hyperparameters.rope
    for name, length in (("small", rope.original_context), ("large", rope.original_context + 1)):
        expected = layers.rotary_table(rope, length, np.dtype(np.float32))
        for kind, values in zip(("cos", "sin"), expected, strict=True):
            found = tables[f"{kind}_cache_{name}"].read(3, 70)
            np.testing.assert_allclose(
                found, values[3:70], rtol=0, atol=1.3e-7
            )  # NumPy's float32 is not exact


@pytest.mark.parametrize(("kind", "window"), [("phi3", 2047), ("phi4mini", -1), ("phi", -1)])
def test_window_counts_only_inside_the_context(model_folder, tmp_path, kind, window):
    convert(model_folder(kind), tmp_path / "m", "f32")
    for node in graph_of(tmp_path / "m").node:
        if node.op_type == "GroupQueryAttention":
            attributes = {a.name: a.i for a in node.attribute}
            assert attributes["local_window_size"] == window


def test_epsilon_of_layer_norms_is_the_model_s(model_folder, tmp_path):
    convert(model_folder("phi"), tmp_path / "m", "f32")
    norms = [n for n in graph_of(tmp_path / "m").node if "LayerNorm" in n.name]
    assert len(norms) == 3
    assert {round(a.f, 9) for n in norms for a in n.attribute if a.name == "epsilon"} == {1e-5}


def test_heads_that_the_attention_cannot_rotate(model_folder, tmp_path):
    convert(model_folder("phi2"), tmp_path / "m", "f32")
    graph = graph_of(tmp_path / "m")
    assert "position_ids" in {i.name for i in graph.input}
    assert operators(tmp_path / "m").count("RotaryEmbedding") == 4
    config = json.loads((tmp_path / "m" / "genai_config.json").read_text())
    assert config["model"]["decoder"]["inputs"]["position_ids"] == "position_ids"


@pytest.mark.parametrize(("experts", "used"), [(4, 2), (16, 2), (5, 3)])
def test_sparse_mixer_in_nodes(experts, used):
    spec = MixtureOfExperts(experts, used, 0.01, "silu")
    graph = Graph()
    graph.input("scores", onnx.TensorProto.FLOAT, ["tokens", experts])
    result = sparse_mixer(graph, "/mixer", "scores", spec)
    graph.output(result, onnx.TensorProto.FLOAT, ["tokens", experts])
    scores = np.random.default_rng(1).standard_normal((200, experts)).astype(np.float32)
    scores[:100] = 1 + scores[:100] / 50  # many that are near
    (weights,) = ReferenceEvaluator(graph.finish()).run(None, {"scores": scores})
    chosen, expected = layers.sparse_mixer(scores, spec)
    assert np.allclose(np.take_along_axis(weights, chosen, axis=1), expected, atol=1e-6)
    assert np.allclose(weights.sum(axis=1), expected.sum(axis=1), atol=1e-6)


# ----------------------------------------------------------------------------------------- genai_config.json


def test_settings_of_genai(tmp_path):
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", "int4")
    config = json.loads((tmp_path / "m" / "genai_config.json").read_text())
    model = config["model"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("phi3", 2112, 4096)
    assert (model["bos_token_id"], model["pad_token_id"]) == (1, 2048)
    assert model["eos_token_id"] == [2048, 2049, 2055]
    assert model["decoder"]["num_hidden_layers"] == 6
    assert config["search"]["max_length"] == 4096
    assert config["search"]["past_present_share_buffer"] is True


# -------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("target", ["cuda", "dml", "webgpu"])
def test_other_targets_compute_in_float16(model_folder, tmp_path, target):
    result = convert(model_folder("phi4mini"), tmp_path / "m", "int4", target=target)
    assert {name.rpartition("_")[2] for name in encodings(result).values()} == {"f16"}
    graph = graph_of(tmp_path / "m")
    cache = {v.type.tensor_type.elem_type for v in graph.output}
    assert cache == {onnx.TensorProto.FLOAT16}
    assert "Cast" not in {
        n.op_type for n in graph.node if "lengths" not in n.name and "positions" not in n.name
    }
    config = json.loads((tmp_path / "m" / "genai_config.json").read_text())
    (provider,) = config["model"]["decoder"]["session_options"]["provider_options"]
    assert set(provider) == {target}
    levels = {a.i for n in graph.node for a in n.attribute if a.name == "accuracy_level"}
    assert levels == ({4} if target == "webgpu" else set())


def test_directml_gets_no_control_flow(model_folder, tmp_path):
    found = {}
    for target in ("cuda", "dml"):
        convert(model_folder("phi3-su"), tmp_path / target, "f16", target=target)
        found[target] = operators(tmp_path / target)
    assert "If" in found["cuda"]
    assert "RotaryEmbedding" not in found["cuda"]
    assert "If" not in found["dml"]
    assert (found["dml"].count("Split"), found["dml"].count("RotaryEmbedding")) == (2, 4)
    assert found["dml"].count("Concat") == 2


# -------------------------------------------------------------------------------------------------- recipes


def test_ends_get_8_bits_and_the_runtime_s_choice_can_be_had(model_folder, tmp_path):
    ours = encodings(convert(model_folder("phi3"), tmp_path / "a", "int4"))
    theirs = encodings(convert(model_folder("phi3"), tmp_path / "b", "int4", match_runtime=True))
    ends = ("model.embed_tokens.weight", "lm_head.MatMul.weight")
    assert [ours[name] for name in ends] == ["onnx_int8_g32_f32"] * 2
    assert [theirs[name] for name in ends] == ["f32", "onnx_int4_g32_f32"]
    assert {n: e for n, e in ours.items() if n not in ends} == {
        n: e for n, e in theirs.items() if n not in ends
    }


def test_rows_that_do_not_divide_get_smaller_blocks(model_folder, tmp_path):
    result = convert(model_folder("phimoe"), tmp_path / "m", "int4-asym-g64")  # experts of 32 columns
    found = encodings(result)
    assert found["model.layers.0.attn.qkv_proj.MatMul.weight"] == "onnx_int4_asym_g64_f32"
    for part in ("gate_up_proj", "down_proj"):
        assert found[f"model.layers.0.moe.experts.{part}.MatMul.weight"] == "onnx_int4_asym_g32_f32"
    assert found["model.layers.0.moe.router.MatMul.weight"] == "f32"


def test_single_matrices_by_name(model_folder, tmp_path):
    types = (override("lm_head=f16"), override(r"layers\.1\..*o_proj=int8-rtn"))
    found = encodings(convert(model_folder("phi3"), tmp_path / "m", "int4", tensor_types=types))
    assert found["lm_head.MatMul.weight"] == "f16"
    assert found["model.layers.1.attn.o_proj.MatMul.weight"] == "onnx_int8_rtn_g32_f32"
    assert found["model.layers.0.attn.o_proj.MatMul.weight"] == "onnx_int4_g32_f32"


def test_mixed_recipe_gives_some_layers_8_bits(tmp_path):
    found = encodings(convert(FIXTURES / "tiny-phi3", tmp_path / "m", "int4-k_quant_mixed"))
    high = {n for n, e in found.items() if e == "onnx_int8_k_quant_asym_g32_f32"}
    assert {name.split(".")[2] for name in high} == {"0", "3"}  # of six
    assert all("qkv_proj" in name or "down_proj" in name for name in high)


@pytest.mark.parametrize("match_runtime", [False, True])
def test_mixed_recipe_of_the_builder_passes_over_the_down_matrices_of_phi(
    model_folder, tmp_path, match_runtime
):
    found = encodings(
        convert(model_folder("phi"), tmp_path / "m", "int4-k_quant_mixed", match_runtime=match_runtime)
    )
    bits = "int4" if match_runtime else "int8"
    assert found["model.layers.0.mlp.down_proj.MatMul.weight"] == f"onnx_{bits}_k_quant_asym_g32_f32"
    assert found["model.layers.0.attn.qkv_proj.MatMul.weight"] == "onnx_int8_k_quant_asym_g32_f32"


def test_last_matrix_can_have_8_searched_bits(tmp_path):
    types = (override("lm_head=int8-k_quant"),)
    found = encodings(convert(FIXTURES / "tiny-phi3", tmp_path / "m", "int4-k_quant", tensor_types=types))
    assert found["lm_head.MatMul.weight"] == "onnx_int8_k_quant_asym_g32_f32"
    assert found["model.layers.0.attn.qkv_proj.MatMul.weight"] == "onnx_int4_k_quant_asym_g32_f32"


@pytest.mark.parametrize(
    ("kind", "quant", "options", "says"),
    [
        ("phi3", "f32", {"target": "cuda"}, "--target cuda computes in float16"),
        ("phimoe", "int4", {"target": "cuda"}, "on processors only"),
        ("phi3", "int4", {"target": "toaster"}, "--target toaster: no such target; one of cpu"),
        ("phi3", "int4", {"accuracy_level": 9}, "no accuracy level 9"),
        ("phi3", "int3", {}, "did you mean int8"),
        ("phi3", "int4", {"pure": True}, "--pure means nothing for onnx"),
        ("phimoe", "int4", {"tensor_types": (override("experts.down=f16"),)}, "cannot be quantized where"),
    ],
)
def test_refusals(model_folder, tmp_path, kind, quant, options, says):
    with pytest.raises(PhiconvError, match=says):
        convert(model_folder(kind), tmp_path / "m", quant, **options)
    assert not (tmp_path / "m").exists()


def test_what_the_runtime_cannot_run_is_refused_before_a_weight_is_read(make_model, tmp_path):
    folder = make_model(tmp_path / "s", "phi3", seed=1, num_attention_heads=16, num_key_value_heads=16)
    with pytest.raises(PhiconvError, match="multiple of 8 dimensions, not of 4"):
        phiconv.plan(folder, tmp_path / "m", to="onnx", quant="int4")


def test_plain_tensors_are_refused(tmp_path, write_safetensors):
    path = write_safetensors({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16))
    with pytest.raises(PhiconvError, match="no config"):
        phiconv.plan(path, tmp_path / "m", to="onnx", quant="int4")


def test_split_is_refused(tmp_path):
    with pytest.raises(PhiconvError, match="one file"):
        phiconv.plan(FIXTURES / "tiny-phi3", tmp_path / "m", to="onnx", quant="q4", split_max_size=1000)
