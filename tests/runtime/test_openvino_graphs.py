"""OpenVINO computes what phiconv writes as NumPy does, with the operations that its CPU plugin fuses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import phiconv
from openvino_runtime import STRICT, infer, quantized
from paths import FIXTURES
from phiconv.tokenization.encoder import decode as decode_ids

pytestmark = pytest.mark.runtime

KINDS = ["phi", "phi2", "phi3", "phi3-gqa", "phi4mini", "phimoe", "phimoe-tiny"]
SCHEMES = [
    *("int4-asym-g64", "int4-asym-g32", "int4-asym-channel", "int4-sym-g64", "int4-sym-channel"),
    *("int8-asym", "int8-sym", "nf4-g32", "mxfp4", "mxfp8", "f16", "bf16"),
]


EXPERT_SCHEMES = ["int4-asym-g32", "int4-sym-channel", "int8-sym", "mxfp4", "mxfp8"]


@pytest.fixture
def run(openvino, tmp_path):
    """Writes a model and compiles it: the plan, and a function from ids to logits."""

    def compile_(source, quant, **options):
        choices = phiconv.Choices(**options)
        target = tmp_path / f"{len(list(tmp_path.iterdir()))}.xml"
        plan = phiconv.convert(source, target, quant=quant, choices=choices).plan
        return plan, openvino.Core().compile_model(target, "CPU", STRICT)

    return compile_


def layers(compiled):
    """How often each kind of operation runs, a product with matrices by their element type."""
    counts = Counter()
    for op in compiled.get_runtime_model().get_ops():
        info = {key: op.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision")}
        kind = info["layerType"]
        counts[f"{kind} {info['runtimePrecision']}" if kind == "FullyConnected" else kind] += 1
    return counts


def distance(a, b):
    return float(np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(b.astype(np.float64)))


def ids_for(folder, shape=(2, 24), seed=3):
    vocabulary = phiconv.open_model(folder).hyperparameters.vocab_size
    return np.random.default_rng(seed).integers(0, vocabulary, shape)


# ---------------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("kind", [*KINDS, "tiny-phi3", "tiny-phi4mini"])
def test_every_kind_of_model(run, model_folder, kind):
    folder = model_folder(kind)
    _, compiled = run(folder, "f32")
    ids = ids_for(folder)
    logits = infer(compiled, ids)
    assert distance(logits, phiconv.logits(folder, ids)) < 1e-5
    assert distance(infer(compiled, ids, [11, 1, 1, 11]), logits) < 1e-5


@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_reference_logits(run, name):
    with np.load(FIXTURES / name / "reference.npz") as stored:
        ids, expected = stored["input_ids"][:2], stored["logits_f32"]
    assert distance(infer(run(FIXTURES / name, "f32")[1], ids), expected) < 1e-5


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [*(("phi3", scheme) for scheme in SCHEMES), *(("phimoe", scheme) for scheme in EXPERT_SCHEMES)],
)
def test_every_scheme_computes_with_the_weights_that_it_stores(run, model_folder, kind, scheme):
    folder = model_folder(kind)
    plan, compiled = run(folder, scheme)
    ids = ids_for(folder)
    bound = 5e-5 if kind == "phimoe" else 1e-5
    assert distance(infer(compiled, ids), phiconv.logits(quantized(plan), ids)) < bound


@pytest.mark.parametrize(
    ("quant", "options"), [("int4-asym-g32", {"all_layers": True}), ("mxfp4", {"match_runtime": True})]
)
def test_tied_quantized_embedding(run, quant, options):
    plan, compiled = run(FIXTURES / "tiny-phi4mini", quant, **options)
    ids = ids_for(FIXTURES / "tiny-phi4mini")
    assert distance(infer(compiled, ids), phiconv.logits(quantized(plan), ids)) < 1e-5


@pytest.mark.parametrize("kind", ["phi4mini", "phimoe"])
def test_long_texts_take_the_long_factors(run, model_folder, kind):
    folder = model_folder(kind)
    rope = phiconv.open_model(folder).hyperparameters.rope
    assert rope.short_factor != rope.long_factor
    _, compiled = run(folder, "f32")
    for length in (rope.original_context, rope.original_context + 1):
        ids = ids_for(folder, (1, length))
        assert distance(infer(compiled, ids), phiconv.logits(folder, ids)) < 1e-5


def test_padding_on_the_left_changes_nothing(run):
    _, compiled = run(FIXTURES / "tiny-phi3", "f32")
    ids = ids_for(FIXTURES / "tiny-phi3", (1, 12))
    padded = np.concatenate([np.zeros((1, 5), np.int64), ids], axis=1)
    mask = np.arange(17)[None] >= 5
    request = compiled.create_infer_request()
    request.infer(
        {
            "input_ids": padded.astype(np.int64),
            "attention_mask": mask.astype(np.int64),
            "position_ids": np.maximum(np.arange(17)[None] - 5, 0).astype(np.int64),
            "beam_idx": np.zeros(1, np.int32),
        }
    )
    assert distance(request.get_tensor("logits").data[:, 5:], infer(compiled, ids)) < 1e-5


# ---------------------------------------------------------------------------------------------------- fusion


@pytest.mark.parametrize(
    ("kind", "quant", "norm", "products"),
    [
        ("phi2", "int4-asym-g32", {"MVN": (1, 1)}, {"u4": (6, 0), "u8": (0, 1)}),
        ("phi3-gqa", "int4-sym-g32", {"RMS": (2, 1)}, {"i4": (4, 0), "u8": (0, 1)}),
        ("phi4mini", "int8-asym", {"RMS": (2, 1)}, {"u8": (4, 1)}),
        ("llama3", "int4-asym-g32", {"RMS": (2, 1)}, {"u4": (7, 0), "u8": (0, 1)}),
        ("qwen3", "int4-asym-g32", {"RMS": (4, 1)}, {"u4": (7, 0), "u8": (0, 1)}),
        ("phi3", "nf4-g32", {"RMS": (2, 1)}, {"nf4": (4, 0), "u8": (0, 1)}),
        ("phimoe", "int4-asym-g32", {"MVN": (2, 1), "GatherMatmul": (3, 0)}, {"u4": (4, 0), "u8": (1, 1)}),
    ],
)
def test_the_plugin_recognises_what_it_can_fuse(openvino, run, model_folder, kind, quant, norm, products):
    if kind == "phimoe" and int(openvino.__version__.split(".")[0]) < 2026:
        pytest.skip("older releases do not fuse experts")
    folder = model_folder(kind)
    _, compiled = run(folder, quant)
    found = layers(compiled)
    n = phiconv.open_model(folder).hyperparameters.num_hidden_layers
    expected = {"RoPE": 2 * n, "ScaledDotProductAttention": n}
    expected |= {kind: each * n + once for kind, (each, once) in norm.items()}
    expected |= {f"FullyConnected {t}": each * n + once for t, (each, once) in products.items()}
    assert {kind: found[kind] for kind in expected} == expected
    assert sum(count for kind, count in found.items() if kind.startswith("FullyConnected")) == sum(
        each * n + once for each, once in products.values()
    )
    if kind != "phimoe":
        assert found["Softmax"] == 0


# ---------------------------------------------------------------------------------------------------- GenAI


@pytest.fixture(scope="module")
def generate(genai, openvino):
    """Greedy continuation by GenAI of a folder, in one of its backends."""

    def run(folder, ids, count, backend):
        pipeline = genai.LLMPipeline(folder, "CPU", ATTENTION_BACKEND=backend, **STRICT)
        config = genai.GenerationConfig(
            max_new_tokens=count, do_sample=False, ignore_eos=True, eos_token_id=0, stop_token_ids={0}
        )
        inputs = (openvino.Tensor(x) for x in (ids, np.ones_like(ids)))
        return pipeline.generate(genai.TokenizedInputs(*inputs), config).tokens[0]

    return run


def greedy(model, ids, count):
    for _ in range(count):
        ids = np.append(ids, phiconv.logits(model, ids)[:, -1:].argmax(axis=-1), axis=1)
    return ids[0, -count:].tolist()


@pytest.mark.parametrize("backend", ["SDPA", "PA"])
@pytest.mark.parametrize(("name", "quant"), [("tiny-phi3", "f32"), ("tiny-phi4mini", "int4-asym-g64")])
def test_genai_goes_on_as_numpy_does(generate, tmp_path, name, quant, backend):
    plan = phiconv.convert(FIXTURES / name, tmp_path / "m", to="openvino", quant=quant).plan
    with np.load(FIXTURES / name / "reference.npz") as stored:
        ids = stored["input_ids"][:1, :24].astype(np.int64)
    expected = greedy(quantized(plan), ids, 12)
    assert generate(tmp_path / "m", ids, 12, backend) == expected


@pytest.mark.parametrize("backend", ["SDPA", "PA"])
def test_genai_sees_the_sliding_window(openvino, generate, tmp_path, make_model, backend):
    if backend == "PA" and int(openvino.__version__.split(".")[0]) < 2026:
        pytest.skip("the paged backend of release 2025.4 throws this window away")
    folder = make_model(tmp_path / "s", "phi3", seed=7, sliding_window=7)
    phiconv.convert(folder, tmp_path / "m", to="openvino", quant="f32")
    ids = ids_for(folder, (1, 24))
    expected = greedy(folder, ids, 8)
    assert generate(tmp_path / "m", ids, 8, backend) == expected
    wider = make_model(tmp_path / "w", "phi3", seed=7, sliding_window=8)
    assert greedy(wider, ids, 8) != expected


def test_genai_answers_in_text(genai, tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m", to="openvino", quant="f32")
    pipeline = genai.LLMPipeline(tmp_path / "m", "CPU", **STRICT)
    prompt = "The quick brown fox"
    config = genai.GenerationConfig(max_new_tokens=12, do_sample=False, apply_chat_template=False)
    ids = list(phiconv.generate(FIXTURES / "tiny-phi3", prompt, 12))
    expected = decode_ids(phiconv.open_model(FIXTURES / "tiny-phi3").tokenizer, ids, skip_special=True)
    assert str(pipeline.generate(prompt, config)).strip() == expected.strip() != ""
