"""Perplexity and divergence against plain formulas and stored figures; calibration against its definition."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import OutputError, OutputExistsError, UsageError, WeightError
from phiconv.forward.interpreter import compute
from phiconv.ir.model import Role
from phiconv.quality import evaluation
from phiconv.quality.batches import windows
from phiconv.quality.calibration import column_sums
from phiconv.tokenization.encoder import encode
from phiconv_formats.gguf.imatrix import read_imatrix
from phiconv_formats.gguf.imatrix_writer import measured_matrices
from phiconv_formats.gguf.reader import open_gguf

TINY = FIXTURES / "tiny-phi3"


@pytest.fixture(scope="module")
def reference():
    with np.load(TINY / "reference.npz") as arrays:
        return dict(arrays)


def evaluate(model, ids, **options):
    """The evaluation of one model."""
    (result,) = evaluation.evaluate([model], ids, **options)
    return result


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def losses(logits, ids, first=0):
    """Of every scored position of every window."""
    logs = log_softmax(logits)
    return np.array([-logs[w, i, ids[w, i + 1]] for w in range(len(ids)) for i in range(first, 127)])


@pytest.mark.parametrize("llama", [False, True])
def test_perplexity_is_that_of_transformers_logits(reference, llama):
    ids = reference["input_ids"][:2]
    expected = losses(reference["logits_f32"], ids, 64 if llama else 0)
    found = phiconv.evaluate(TINY, [*ids.reshape(-1), 5, 6], context=128, llama=llama)
    assert (found.windows, found.context, found.tokens) == (2, 128, expected.size)
    assert found.loss == pytest.approx(expected.mean(), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(expected.mean()), rel=1e-6)
    error = expected.std(ddof=1) / math.sqrt(expected.size)
    assert found.perplexity_error == pytest.approx(found.perplexity * error, rel=1e-6)
    hits = reference["logits_f32"][:, 64 if llama else 0 : -1].argmax(-1) == ids[:, 65 if llama else 1 :]
    assert found.accuracy == pytest.approx(hits.mean())
    assert found.divergence is None


def test_a_text_is_its_tokens():
    text = (FIXTURES / "test.txt").read_text(encoding="utf-8")[:1500]
    ids = encode(phiconv.open_model(TINY).tokenizer, text)
    found = phiconv.evaluate(TINY, text, context=128)
    assert found == phiconv.evaluate(TINY, ids, context=128)
    assert found.windows == len(ids) // 128


def test_divergence(reference):
    ids = reference["input_ids"][:2]
    model, other = phiconv.open_model(TINY), phiconv.open_model(FIXTURES / "tiny-phi4mini")
    found = evaluate(other, ids, context=128, reference=model).divergence
    p, q = (log_softmax(phiconv.logits(m, ids))[:, :-1].reshape(-1, 2112) for m in (model, other))
    each = (np.exp(p) * (p - q)).sum(axis=1)
    assert found.mean == pytest.approx(each.mean(), rel=1e-5)
    assert found.error == pytest.approx(each.std(ddof=1) / math.sqrt(each.size), rel=1e-5)
    assert found.median == pytest.approx(np.median(each), rel=1e-4)
    assert found.percentile_99 == pytest.approx(np.quantile(each, 0.99), rel=1e-4)
    assert found.maximum == pytest.approx(each.max(), rel=1e-4)
    assert found.same_top == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    one, two = losses(phiconv.logits(other, ids), ids), losses(phiconv.logits(model, ids), ids)
    assert found.perplexity == pytest.approx(math.exp(two.mean()), rel=1e-5)
    assert found.ratio == pytest.approx(math.exp((one - two).mean()), rel=1e-5)
    error = (one - two).std(ddof=1) / math.sqrt(one.size)
    assert found.ratio_error == pytest.approx(found.ratio * error, rel=1e-4)


def test_intervals_are_of_windows(reference):
    ids = reference["input_ids"].reshape(-1)[:512]
    model, other = phiconv.open_model(TINY), phiconv.open_model(FIXTURES / "tiny-phi4mini")
    found = evaluate(other, ids, context=64, reference=model).divergence
    p, q = (log_softmax(phiconv.logits(m, ids.reshape(-1, 64)))[:, :-1] for m in (model, other))
    each = (np.exp(p) * (p - q)).sum(axis=2).mean(axis=1)
    low, high = found.mean_interval
    assert low < found.mean < high
    assert (high - low) / 2 == pytest.approx(1.96 * each.std() / math.sqrt(8), rel=0.25)
    low, high = found.same_top_interval
    assert low < found.same_top < high
    assert found.percentile_99 <= found.percentile_999 <= found.maximum
    assert found.percentile_999_interval[0] <= found.percentile_999 <= found.percentile_999_interval[1]
    assert evaluate(other, ids[:64], context=64, reference=model).divergence.mean_interval is None


def test_several_models_share_a_reference(reference, monkeypatch):
    ids = reference["input_ids"][:2]
    models = [phiconv.open_model(FIXTURES / name) for name in ("tiny-phi4mini", "tiny-phi3", "tiny-phi4mini")]
    alone = [evaluate(m, ids, context=64, reference=models[1]) for m in models]
    seen = []
    monkeypatch.setattr(
        "phiconv.quality.reference.compute", lambda *a, **o: seen.append(a) or compute(*a, **o)
    )
    assert evaluation.evaluate(models, ids, context=64, reference=models[1]) == alone
    assert len(seen) == 1
    assert evaluation.evaluate(models, ids, context=64)[1].divergence is None


def test_a_reference_is_remembered(reference, tmp_path, monkeypatch):
    ids, path = reference["input_ids"][:2], tmp_path / "r.safetensors"
    model, other = phiconv.open_model(TINY), phiconv.open_model(FIXTURES / "tiny-phi4mini")
    monkeypatch.setattr("phiconv.quality.batches.BATCH_TOKENS", 128)
    expected = evaluate(other, ids, context=64, reference=model)
    options = {"reference": model, "reference_file": path}
    assert evaluate(other, ids, context=64, **options) == expected
    written = path.read_bytes()
    seen = []
    monkeypatch.setattr(
        "phiconv.quality.reference.compute", lambda *a, **o: seen.append(a) or compute(*a, **o)
    )
    steps = []
    again = evaluate(other, ids, context=64, **options, progress=lambda *step: steps.append(step))
    assert (again, seen) == (expected, [])
    assert steps[-1][0] == steps[-1][1]
    assert path.read_bytes() == written
    # Another text, context or model is computed, and takes its place.
    for changed in ({"context": 32}, {"ids": ids[::-1]}, {"reference": other}):
        evaluate(other, changed.pop("ids", ids), **({"context": 64} | options | changed))
        assert path.read_bytes() != written
        assert seen
        written = path.read_bytes()
        seen.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]


def test_no_other_file_is_taken_for_a_reference(reference, tmp_path):
    model, ids = phiconv.open_model(TINY), reference["input_ids"][0]
    for content in (b"", b"notes", (TINY / "model.safetensors").read_bytes()):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(OutputExistsError, match="keeps no reference"):
            evaluate(model, ids, context=64, reference=model, reference_file=tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == content
    with pytest.raises(OutputError, match="no such folder"):
        evaluate(model, ids, context=64, reference=model, reference_file=tmp_path / "no" / "x")
    with pytest.raises(UsageError, match="no reference"):
        phiconv.evaluate(TINY, ids, reference_file=tmp_path / "y")


def test_a_model_does_not_diverge_from_itself(reference):
    model = phiconv.open_model(TINY)
    found = evaluate(model, reference["input_ids"][0], context=64, reference=model).divergence
    assert (found.mean, found.maximum, found.ratio, found.same_top) == (0, 0, 1, 1)


def test_bos_replaces_the_first_token_of_each_window(reference):
    model, ids = phiconv.open_model(TINY), reference["input_ids"][:2].copy()
    found = evaluate(model, ids, context=128, bos=1)
    ids[:, 0] = 1
    # The first token is never scored itself.
    assert found == evaluate(model, ids, context=128)


def test_windows():
    assert windows(range(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(UsageError, match="fewer than one window of 12"):
        windows(range(11), 12)
    with pytest.raises(UsageError, match="too short"):
        windows(range(11), 1)


def test_batches_do_not_change_the_figures(reference, monkeypatch):
    model, ids = phiconv.open_model(TINY), reference["input_ids"][:3]
    expected = evaluate(model, ids, context=64)
    monkeypatch.setattr("phiconv.quality.batches.BATCH_TOKENS", 128)
    monkeypatch.setattr("phiconv.quality.evaluation._CHUNK", 10000)
    assert evaluate(model, ids, context=64).loss == pytest.approx(expected.loss, rel=1e-6)


def test_progress_grows_to_its_end(reference):
    seen = []
    model, ids = phiconv.open_model(TINY), reference["input_ids"]
    evaluate(model, ids, reference=model, context=512, progress=lambda *step: seen.append(step))
    done = [d for d, _, _ in seen]
    assert done == sorted(set(done))
    assert seen[-1] == (12, 12, "window 2 of 2")
    assert len(seen) == 11  # five borders between the layers of each model, and the end


def test_other_vocabulary(make_model, tmp_path, reference):
    other = phiconv.open_model(make_model(tmp_path, "phi3", vocab_size=2200))
    with pytest.raises(UsageError, match="another vocabulary"):
        evaluate(phiconv.open_model(TINY), reference["input_ids"], reference=other)


def test_weights_that_are_not_finite(make_model, make_models, tmp_path):
    folder = make_model(tmp_path, "phi3")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-2:] = b"\xc0\x7f"  # the last weight of the output matrix, bfloat16: NaN
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightError, match="predicts NaN"):
        phiconv.evaluate(folder, range(64), context=64)


# ---------------------------------------------------------------------------------------------- calibration


def test_sums_are_those_of_the_inputs(reference):
    model, ids = phiconv.open_model(TINY), reference["input_ids"][:2]
    seen, role = [], Role("ffn_down", 3)

    def watch(some, x, expert):
        if some == role:
            seen.append(x.astype(np.float64))

    compute(model, ids, watch=watch)
    sums, count = column_sums(model, ids, {role, Role("attn_q", 0)}, context=64)
    assert count == 4
    assert sums[role].counts.tolist() == [256]
    embedded = phiconv.read(model.tensors[Role("token_embedding")])[ids.reshape(-1)].astype(np.float64)
    norm = phiconv.read(model.tensors[Role("attn_norm", 0)])
    epsilon = model.hyperparameters.norm_epsilon
    x = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + epsilon) * norm
    np.testing.assert_allclose(sums[Role("attn_q", 0)].sums[0], (x**2).sum(axis=0), rtol=1e-5)
    whole, _ = column_sums(model, ids, {role}, context=128)
    np.testing.assert_allclose(whole[role].sums[0], (np.concatenate(seen) ** 2).sum(axis=0), rtol=1e-5)


def test_experts_are_measured_apart(model_folder, tmp_path):
    folder = model_folder("phimoe")
    path = phiconv.calibrate(folder, range(100, 228), tmp_path / "i.gguf", context=32, dataset="a text")
    file = open_gguf(path)
    counts = file.tensors["blk.1.ffn_up_exps.weight.counts"]
    assert counts.shape == (4, 1)
    assert counts.read(0, 4).sum() == 2 * 128
    assert file.tensors["blk.1.ffn_up_exps.weight.in_sum2"].shape == (4, 64)
    assert file.tensors["blk.1.ffn_gate_inp.weight.in_sum2"].shape == (64,)
    matrix = read_imatrix(path)
    assert (matrix.datasets, matrix.chunks) == (("a text",), 4)
    assert matrix.weights.keys() == measured_matrices(phiconv.open_model(folder)).keys()


def test_importance_matrix_serves_a_conversion(tmp_path, reference):
    path = phiconv.calibrate(TINY, reference["input_ids"], tmp_path / "i.gguf", context=256)
    plan = phiconv.plan(TINY, tmp_path / "m.gguf", quant="IQ3_M", imatrix=path)
    measured = {s.name for s in plan.package.streams if s.importance is not None}
    assert measured == {f"blk.{n}.{m}.weight" for n in range(6) for m in MATRICES}
    with pytest.raises(OutputExistsError):
        phiconv.calibrate(TINY, reference["input_ids"], path, context=256)


def test_matrices_of_a_gguf_keep_their_names(tmp_path):
    stored = phiconv.open_model(phiconv.convert(TINY, tmp_path / "m.gguf").files[0]).stored
    fused, down = stored["blk.0.attn_qkv.weight"], stored["blk.0.ffn_down.weight"]
    tensors = {
        Role("attn_q", 0): fused.slice_rows(0, 256),
        Role("attn_k", 0): fused.slice_rows(256, 384),
        Role("ffn_down", 0): down,
        Role("attn_norm", 0): stored["blk.0.attn_norm.weight"],
        Role("output"): stored["output.weight"],
    }
    model = replace(phiconv.open_model(TINY), format="gguf", stored=stored, tensors=tensors)
    assert measured_matrices(model) == {
        "blk.0.attn_qkv.weight": Role("attn_q", 0),
        "blk.0.ffn_down.weight": Role("ffn_down", 0),
    }


MATRICES = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


# ----------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("name", ["tiny-phi3", "tiny-phi4mini"])
def test_greedy_tokens_are_those_of_transformers(name):
    items = json.loads((FIXTURES / name / "generations.json").read_text())["items"]
    model = phiconv.open_model(FIXTURES / name)
    for item in items[:2]:
        assert list(phiconv.generate(model, item["prompt_ids"], 8)) == item["greedy_ids"][:8]
        assert list(phiconv.generate(model, item["prompt"], 8)) == item["greedy_ids"][:8]


def test_generation_ends():
    model = phiconv.open_model(TINY)
    tokens = list(phiconv.generate(model, "The function returns a list of", 4))
    stopping = replace(model, tokenizer=replace(model.tokenizer, eos_ids=(tokens[2],)))
    assert list(phiconv.generate(stopping, "The function returns a list of", 9)) == tokens[:3]
