"""Folders for Qualcomm's processors: their graphs, their genai_config.json, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv_formats.onnx import pipeline

GRAPHS = ["embeddings", "context", "iterator", "lm_head"]


def convert(source, folder, quant="int4", **choices):
    choices = phiconv.Choices(target="qnn", **choices)
    return phiconv.convert(source, folder, to="onnx", quant=quant, choices=choices)


def graph_of(folder, name):
    return onnx.load(str(folder / f"{name}.onnx"), load_external_data=False).graph


def section_of(folder):
    return json.loads((folder / "genai_config.json").read_text())["model"]


def shapes(values):
    return {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qnn") / "m"
    convert(FIXTURES / "tiny-phi3", folder, context=256)
    return folder


@pytest.mark.parametrize("quant", ["f16", "int4-asym"])
@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("kind", ["phi", "phi3", "phi4mini", "llama-bias", "qwen2", "qwen3"])
def test_checker_accepts_every_graph(model_folder, tmp_path, kind, attention, quant):
    convert(model_folder(kind), tmp_path / "m", quant, attention=attention, context=128)
    for name in GRAPHS:
        onnx.checker.check_model(str(tmp_path / "m" / f"{name}.onnx"))


@pytest.mark.parametrize(("name", "length"), [("context", 64), ("iterator", 1)])
def test_sizes_are_fixed(made, name, length):
    graph = graph_of(made, name)
    given, found = shapes(graph.input), shapes(graph.output)
    assert given["hidden_states.0"] == found["hidden_states.6"] == [1, length, 256]
    assert (given["past_seq_len"], given["total_seq_len"]) == ([1, 1], [1])
    assert given["past_key_values.5.value"] == found["present.5.value"] == [1, 4, 256, 32]
    assert len(given) - 3 == len(found) - 1 == 12


def test_operators_are_those_that_the_processor_has(made):
    found = {node.op_type for node in graph_of(made, "context").node}
    assert found == {
        "Add", "GroupQueryAttention", "MatMulNBits", "Mul", "QuickGelu", "RMSNormalization", "Reshape"
    }  # fmt: skip


def test_every_weight_is_stored_once(made):
    """Both graphs of the layers point to the same bytes."""
    places = []
    for name in ("context", "iterator"):
        tensors = graph_of(made, name).initializer
        places.append({t.name: [(e.key, e.value) for e in t.external_data] for t in tensors})
    shared = {name for name, place in places[0].items() if place}
    assert len(shared) > 60
    assert all(places[0][name] == places[1][name] for name in shared)


def test_the_pipeline_is_described(made):
    section = section_of(made)
    decoder = section["decoder"]
    (stages,) = decoder["pipeline"]
    assert section["type"] == "decoder-pipeline"
    assert section["context_length"] == 256
    assert list(stages) == GRAPHS
    assert "filename" not in decoder
    for before, after in (("embeddings", "context"), ("context", "lm_head"), ("iterator", "lm_head")):
        assert set(stages[before]["outputs"]) & set(stages[after]["inputs"])
    for name, stage in stages.items():
        graph = graph_of(made, name)
        assert stage["inputs"] == [v.name for v in graph.input]
        assert stage["outputs"] == [v.name for v in graph.output]
        assert ("session_options" in stage) == (name in {"context", "iterator"})
    assert stages["context"]["run_on_token_gen"] is stages["iterator"]["run_on_prompt"] is False
    assert decoder["sliding_window"]["slide_key_value_cache"] is False


@pytest.mark.parametrize("kind", ["tiny-phi3", "tiny-phi4mini", "phi", "qwen2"])
def test_prompts_are_padded_with_what_no_prompt_has(model_folder, tmp_path, kind):
    result = convert(model_folder(kind), tmp_path / "m", context=128)
    model, pad = result.plan.model, section_of(tmp_path / "m")["pad_token_id"]
    assert 0 <= pad < model.hyperparameters.vocab_size
    assert pad >= len(model.tokenizer) or model.tokenizer.tokens[pad] is None


def test_a_full_vocabulary_is_padded_with_a_token_that_no_text_gives():
    model = phiconv.open_model(FIXTURES / "tiny-phi3")
    rows = len(model.tokenizer)
    full = replace(model, hyperparameters=replace(model.hyperparameters, vocab_size=rows))
    pad = pipeline._padding(full)
    assert model.tokenizer.tokens[pad] is not None
    assert pad not in {*model.tokenizer.eos_ids, *model.tokenizer.special_ids.values()}


@pytest.mark.parametrize(
    ("kind", "context", "said"),
    [("tiny-phi3", None, 4096), ("tiny-phi4mini", None, 512), ("tiny-phi4mini", 1024, 1024)],
)
def test_context(tmp_path, kind, context, said):
    result = convert(FIXTURES / kind, tmp_path / "m", context=context)
    assert section_of(tmp_path / "m")["context_length"] == said
    notes = [note for note in result.notes if "LongRoPE" in note]
    which = "long" if context else "short"
    assert [f"{which} factors at every length" in note for note in notes] == [True] * ("4mini" in kind)
    tables = shapes_of_tensors(graph_of(tmp_path / "m", "context"))
    assert tables["cos_cache"][0] == said


def shapes_of_tensors(graph):
    return {t.name: list(t.dims) for t in graph.initializer}


def test_layers_are_cut_where_they_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_MOST_BYTES", 1_000_000)
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", "int8", context=128)
    (stages,) = section_of(tmp_path / "m")["decoder"]["pipeline"]
    count = (len(stages) - 2) // 2
    assert count > 2
    parts = [f"context_{i}" for i in range(count)]
    assert list(stages) == ["embeddings", *parts, *(f"iterator_{i}" for i in range(count)), "lm_head"]
    for before, after in pairwise(parts):
        assert stages[before]["outputs"][0] == stages[after]["inputs"][0]
    caches = [n for part in parts for n in stages[part]["inputs"] if n.endswith("key")]
    assert caches == [f"past_key_values.{i}.key" for i in range(6)]


@pytest.mark.parametrize("attention", ["gqa", "standard"])
def test_window(make_model, tmp_path, attention):
    source = make_model(tmp_path / "s", "phi3", seed=7, sliding_window=40)
    convert(source, tmp_path / "m", attention=attention, context=128)
    nodes = graph_of(tmp_path / "m", "context").node
    if attention == "gqa":
        (size,) = {a.i for n in nodes for a in n.attribute if a.name == "local_window_size"}
        assert size == 40
    else:
        assert "And" in {n.op_type for n in nodes}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context": 100}, "--context 100"),
        ({"context": 8192}, "--context 8192"),
        ({"quant": "int4-qdq"}, "ONNX's own operators"),
        ({"quant": "bf16"}, "float16"),
        ({"layout": "transformers.js"}, "--target qnn"),
        ({"attention": "flash"}, "attention"),
    ],
)
def test_refusals(tmp_path, options, says):
    with pytest.raises(UsageError, match=says):
        convert(FIXTURES / "tiny-phi3", tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("options", [{"context": 128}, {"attention": "gqa"}])
def test_fixed_sizes_are_for_this_target(tmp_path, options):
    with pytest.raises(UsageError, match="--target qnn"):
        phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m", to="onnx", choices=phiconv.Choices(**options))


def test_a_file_is_no_place_for_four_graphs(tmp_path):
    with pytest.raises(UsageError, match="several graphs"):
        phiconv.convert(
            FIXTURES / "tiny-phi3", tmp_path / "m.onnx", quant="q4", choices=phiconv.Choices(target="qnn")
        )


def test_mixtures_are_refused(model_folder, tmp_path):
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        convert(model_folder("phimoe"), tmp_path / "m")


@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("kind", ["phi", "tiny-phi4mini"])
def test_such_a_folder_is_a_source(model_folder, tmp_path, kind, attention):
    convert(model_folder(kind), tmp_path / "m", "f32", attention=attention, context=512)
    ids = np.arange(40, 60)[None]
    expected = phiconv.logits(model_folder(kind), ids)
    assert (phiconv.logits(tmp_path / "m", ids) == expected).all()


def test_blocks_stay_as_they_are(tmp_path, made):
    phiconv.convert(made, tmp_path / "m", to="onnx", choices=phiconv.Choices(target="cuda"))
    back = phiconv.plan(made, tmp_path / "n", to="onnx", choices=phiconv.Choices(target="cuda"))
    assert {tensor.action for tensor in back.tensors} <= {"copied", "repacked", "rounded"}
