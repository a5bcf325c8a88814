"""What a report says: each number against another way to find it."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import OutputExistsError, UsageError
from phiconv.ir.roles import Role
from phiconv.quality.along import likeliest, predictions_along
from phiconv.reporting.charts import best_line
from phiconv.reporting.figures import context_text, figure, percent, round_size
from phiconv.reporting.gathering import gather
from phiconv.reporting.grid import Shades, error_grid
from phiconv.reporting.passages import text_numbers
from phiconv.reporting.svg import Scale, short, spread
from phiconv.tokenization.encoder import decode, encode, piece


@pytest.fixture(scope="module")
def models(make_miniature, tmp_path_factory):
    """A miniature with a SentencePiece tokenizer, and the same in four bits."""
    root = tmp_path_factory.mktemp("models")
    source = make_miniature.make_miniature(root / "m", sentencepiece=True)
    phiconv.convert(source, root / "q4.gguf", quant="Q4_0")
    return phiconv.open_model(source), phiconv.open_model(root / "q4.gguf")


@pytest.fixture(scope="module")
def report(models):
    return gather(models[0], models[1:])


def test_sizes(models, report):
    stored = report.candidates[0].stored
    assert stored.file_bytes == models[1].path.stat().st_size
    assert stored.nbytes == sum(t.size * t.encoding.bits_per_weight / 8 for t in models[1].stored.values())
    assert sum(nbytes for _, some in stored.roles for _, nbytes in some) == stored.nbytes
    assert report.original.bits_per_weight == 16
    assert (report.original.letter, stored.letter) == ("A", "B")
    assert (report.original.name, stored.name) == ("m", "q4.gguf")


def test_cache(models, report):
    hp = models[0].hyperparameters
    contexts, nbytes = zip(*report.cache, strict=True)
    assert contexts == (hp.max_position_embeddings,)
    keys = np.zeros((hp.num_hidden_layers, hp.num_key_value_heads, contexts[0], hp.head_dim), np.float16)
    assert nbytes == (2 * keys.nbytes,)


def test_the_grid_has_the_numbers_of_the_comparison(report):
    found = report.candidates[0].errors
    by_name = {each.name: each.difference.relative_rmse for each in found.comparison.tensors}
    assert found.grid.kinds[:4] == ("attn_q", "attn_k", "attn_v", "attn_output")
    for layer, row in enumerate(found.grid.layers):
        for kind, value in zip(found.grid.kinds, row, strict=True):
            assert value == by_name[f"layers.{layer}.{kind}.weight"]
    assert dict(found.grid.others) == {n: by_name[f"{n}.weight"] for n in ("token_embedding", "output")}
    assert error_grid(dataclasses.replace(found.comparison, matched_by="name")) is None


def test_histogram(models, report):
    found = report.candidates[0].errors.histograms[0]
    worst = report.candidates[0].errors.comparison.tensors[0]
    assert found.name == worst.name
    _, layer, name, _ = worst.name.split(".")
    a, b = (phiconv.read(model.tensors[Role(name, int(layer))]).astype(np.float64) for model in models)
    unit = math.sqrt((a**2).mean())
    counts, _ = np.histogram(np.clip((b - a) / unit, found.edges[0], found.edges[-1]), found.edges)
    assert found.shares == pytest.approx(counts / a.size, abs=2 / a.size)  # one may be on an edge
    assert sum(found.shares) == pytest.approx(1)


def test_origin(models, report):
    origin = report.candidates[0].origin
    assert dict(origin.facts)["made of"] == "m"
    assert dict(origin.facts)["options"] == "quant = Q4_0"
    assert [name for name, _ in origin.outputs] == ["q4.gguf"]
    receipt = models[1].path.with_name("q4.gguf.receipt.json")
    text = receipt.read_bytes()
    receipt.write_bytes(text + b" ")
    try:
        changed = gather(models[0], models[1:]).candidates[0]
    finally:
        receipt.write_bytes(text)
    assert changed.origin is None
    assert "somebody edited it" in changed.no_origin
    assert gather(models[0], models[:1]).candidates[0].no_origin == "there is no receipt beside it"


def test_predictions_are_those_of_an_evaluation(models):
    ids = np.arange(3, 99) % 64
    along = predictions_along([models[1]], ids, models[0], context=32)
    (expected,) = phiconv.evaluate_all([models[1]], ids, reference=models[0], context=32)
    assert along.evaluations == (expected,)
    assert along.divergences.mean() == pytest.approx(expected.divergence.mean)
    logits = phiconv.logits(models[0], ids[32:64][None])[0, :-1].astype(np.float64)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :3]
    tokens, probabilities = (part[31:62] for part in along.predictions[-1])
    np.testing.assert_array_equal(tokens, order)
    total = np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, np.exp(np.take_along_axis(logits, order, 1)) / total, rtol=1e-5)
    np.testing.assert_array_equal(along.tokens[31:62], ids[33:64])


def test_likeliest_of_equals():
    ids, probabilities = likeliest(np.array([[0, 1, 1, -np.inf]], np.float32))
    assert ids.tolist() == [[1, 2, 0]]
    assert probabilities.sum() == pytest.approx(1)


def test_the_passage_is_where_candidates_differ_most(models):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 290, 64 * 3)
    along = predictions_along([models[1]] * 10, ids, models[0], context=64)
    found = text_numbers(along, models[0].tokenizer)
    (start,) = {passage.start for passage in found.passages}
    sums = [
        (along.divergences[0, 63 * w + i : 63 * w + i + 40].sum(), 63 * w + i)
        for w in range(3)
        for i in range(63 - 40 + 1)
    ]
    assert max(sums)[1] == start
    passage = found.passages[0]
    assert [token.divergence for token in passage.tokens] == along.divergences[0, start : start + 40].tolist()
    assert passage.tokens[0].text == piece(models[0].tokenizer, int(along.tokens[start]))
    lengths = np.diff([*found.starts, 63 * 3])
    assert (np.array(found.curves[0]) * lengths).sum() == pytest.approx(along.divergences[0].sum())


@pytest.mark.parametrize("model", ["tiny-phi3", "tiny-phi4mini"])
def test_pieces_make_up_the_text(model):
    tokenizer = phiconv.open_model(FIXTURES / model).tokenizer
    ids = encode(tokenizer, "The function returns\n\ta list — of names.")
    text = "".join(piece(tokenizer, token) for token in ids)
    assert re.sub("[\ufffd—]", "", text.lstrip(" ")) == decode(tokenizer, ids).replace("—", "")
    assert piece(tokenizer, 1 << 30) == ""


def test_what_cannot_be_asked_for(models, tmp_path):
    with pytest.raises(UsageError, match="0 models to compare"):
        phiconv.report(models[0], [], tmp_path / "r.html")
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(OutputExistsError):
        phiconv.report(models[0], models[1:], tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "mine"


# ---------------------------------------------------------------------------------------- how it is drawn


def test_best_line():
    points = [(3, 1.0), (1, 5.0), (2, 5.0), (2, 2.0), (4, 1.0), (4, 0.5)]
    assert best_line(points) == [1, 3, 0, 5]


def test_shades():
    shades = Shades.of([0, 1, 64, math.inf])
    assert shades.edges == pytest.approx((2, 4, 8, 16, 32))
    assert [shades(x) for x in (0, 1, 3, 5, 9, 17, 64, math.inf, math.nan)] == [0, 0, 1, 2, 3, 4, 5, 5, 5]
    assert Shades.of([])(0) == 0


def test_scales():
    linear = Scale(0, 10, 100, 0)
    assert (linear(0), linear(5), linear(99)) == (100, 50, 0)
    assert linear.ticks() == [0, 2, 4, 6, 8, 10]
    log = Scale(1, 1000, 0, 30, log=True)
    assert log(100) == pytest.approx(20)
    assert log.ticks() == [1, 10, 100, 1000]
    assert Scale(0.9, 8, 0, 1, log=True).ticks(3) == [1, 2, 5]
    assert Scale.around([0.0], 0, 1, log=True)(0.5) >= 0
    assert Scale.around([], 0, 1).ticks()


def test_labels_keep_apart():
    assert spread([10, 11, 12], 5, 0, 100) == [10, 15, 20]
    assert spread([98, 12, 97], 5, 0, 100) == [100, 12, 95]
    assert short("a long name of a model", 60) == "a long n…"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.23456, "1.23"),
        (123.456, "123"),
        (0.0012345, "0.00123"),
        (0.00012, "1.2e-4"),
        (3e6, "3.0e6"),
    ],
)
def test_figures(value, text):
    assert figure(value) == text


def test_other_figures():
    assert [figure(x) for x in (math.nan, math.inf)] == ["not defined", "infinite"]
    parts = (0, 1e-9, 0.00012, 0.0012, 0.0123, 0.123, 0.99951, 12.34, math.nan)
    assert [percent(x) for x in parts] == ["0", "<.001", "0.012", "0.12", "1.23", "12.3", "100", "1234", "∞"]
    assert [context_text(x) for x in (512, 1000, 4096, 131072)] == ["512", "1000", "4K", "128K"]
    assert [round_size(x) for x in (1e6, 2.5e9, 4e9)] == ["1 MB", "2.50 GB", "4 GB"]
