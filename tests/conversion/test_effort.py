"""``--effort best``: which matrices it changes, what it needs, and that it never makes one worse."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.conversion import effort, sequential
from phiconv.errors import InputError, OutputExistsError, UsageError
from phiconv.forward.interpreter import compute
from phiconv.ir.model import Role
from phiconv.quantizers import best
from phiconv.tokenization.encoder import encode

TINY = FIXTURES / "tiny-phi3"
BEST = phiconv.Choices(effort="best")
TARGETS = {"gguf": "o.gguf", "mlx": "m", "onnx": "n", "openvino": "v"}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    return phiconv.calibrate(TINY, None, tmp_path_factory.mktemp("c") / "c", tokens=2048)


@pytest.fixture(scope="module")
def text():
    return (FIXTURES / "test.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small(model_folder, tmp_path_factory):
    """A model of random weights, and what was measured of it."""
    source = model_folder("phi3")
    ids = np.random.default_rng(3).integers(70, 1000, 1024)
    folder = tmp_path_factory.mktemp("s") / "c"
    return source, phiconv.calibrate(source, ids, folder, context=64, tokens=1024)


def convert(source, out, calibration, **options):
    return phiconv.convert(source, out, choices=BEST, calibration=calibration, receipt=False, **options)


ABOUT_IT = {"receipt.json", ".phiconv.json"}


def outputs(folder):
    return (
        {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name not in ABOUT_IT}
        if folder.is_dir()
        else folder.read_bytes()
    )


# ------------------------------------------------------------------------------------------ what it gives


BOUNDS = {"Q4_0": 0.6, "Q2_K": 0.75, "Q6_K": 0.8}


@pytest.mark.parametrize(("quant", "bound"), BOUNDS.items())
def test_predictions_are_nearer_to_the_model(tmp_path, calibration, text, quant, bound):
    default = phiconv.convert(TINY, tmp_path / "d.gguf", quant=quant)
    found = convert(TINY, tmp_path / "b.gguf", calibration, quant=quant)
    assert found.size == default.size
    assert [t.encoding for t in found.plan.tensors] == [t.encoding for t in default.plan.tensors]
    one, other = phiconv.evaluate_all(
        [default.files[0], found.files[0]], text[:4000], reference=TINY, context=128
    )
    assert other.divergence.mean < bound * one.divergence.mean


@pytest.mark.parametrize("kind", ["phi", "phi3", "phi4mini", "phimoe", "llama", "qwen2"])
def test_no_matrix_gets_worse_on_other_texts(model_folder, tmp_path, kind):
    """Random weights, and tokens at random: nothing to learn, but nothing to lose either."""
    source, rng = phiconv.open_model(model_folder(kind)), np.random.default_rng(5)
    ids = rng.integers(70, source.hyperparameters.vocab_size - 70, 1536)
    phiconv.calibrate(source, ids, tmp_path / "c", context=64, tokens=1536)
    seen = {}
    others = rng.integers(70, source.hyperparameters.vocab_size - 70, (4, 128))
    compute(source, others, watch=lambda role, x, e: seen.setdefault((role, e), x.astype(np.float64)))
    default = phiconv.open_model(phiconv.convert(source, tmp_path / "d.gguf", quant="Q4_0").files[0])
    found = phiconv.open_model(convert(source, tmp_path / "b.gguf", tmp_path / "c", quant="Q4_0").files[0])
    worse = []
    for (role, expert), x in seen.items():
        if role.name == "router":
            continue
        weights = [phiconv.read(m.tensors[role]).astype(np.float64) for m in (source, default, found)]
        rows = [w if expert is None else w[expert] for w in weights]
        before, after = (float(((x @ (w - rows[0]).T) ** 2).sum()) for w in rows[1:])
        if after > 1.01 * before:
            worse.append((role, expert, after / before))
    assert len(seen) > 6
    assert worse == []


def test_a_head_and_an_embedding_count_too(tmp_path, calibration):
    default = phiconv.convert(TINY, tmp_path / "d", to="mlx", quant="4bit")
    found = convert(TINY, tmp_path / "b", calibration, to="mlx", quant="4bit")
    models = [phiconv.open_model(r.files[0].parent) for r in (default, found)]
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.3.mlp.down_proj.weight"):
        one, other = (phiconv.read(m.stored[name], 0, 64) for m in models)
        assert (one != other).any()
    norms = [phiconv.read(m.tensors[Role("output_norm")]) for m in models]
    assert np.array_equal(*norms)


def test_what_has_no_search_is_the_runtimes_own(tmp_path, calibration):
    phiconv.convert(TINY, tmp_path / "d", to="mlx", quant="mxfp4")
    convert(TINY, tmp_path / "b", calibration, to="mlx", quant="mxfp4")
    assert outputs(tmp_path / "d") == outputs(tmp_path / "b")


def test_a_matrix_that_nothing_was_measured_of_is_the_runtimes_own(tmp_path, calibration, monkeypatch):
    monkeypatch.setattr(effort, "moments_of", lambda *_: None)
    phiconv.convert(TINY, tmp_path / "d.gguf", quant="Q4_0")
    convert(TINY, tmp_path / "b.gguf", calibration, quant="Q4_0")
    assert outputs(tmp_path / "d.gguf") == outputs(tmp_path / "b.gguf")


def test_codes_that_are_worse_elsewhere_are_not_taken(tmp_path, calibration, monkeypatch):
    monkeypatch.setattr(best, "choose", lambda *_, **__: best.Choice(None, 1.0, 0.5))
    phiconv.convert(TINY, tmp_path / "d.gguf", quant="Q4_0")
    convert(TINY, tmp_path / "b.gguf", calibration, quant="Q4_0")
    models = [phiconv.open_model(tmp_path / f"{n}.gguf").stored for n in "db"]
    for name in models[0]:
        same = np.array_equal(*(phiconv.read(m[name]) for m in models))
        assert same == (name != "token_embd.weight")


# -------------------------------------------------------------------------------- same bytes, parts


@pytest.mark.parametrize("to", TARGETS)
def test_bytes_do_not_depend_on_workers(tmp_path, small, to):
    found = []
    for number, options in enumerate(({"jobs": 1}, {"jobs": 3}, {"jobs": 2, "processes": True})):
        out = tmp_path / str(number) / TARGETS[to]
        out.parent.mkdir()
        convert(small[0], out, small[1], to=to, quant="q4", **options)
        found.append(outputs(out))
    assert found[0] == found[1] == found[2]


def test_wide_matrices_are_done_in_parts(tmp_path, calibration, text, monkeypatch):
    default = phiconv.convert(TINY, tmp_path / "d.gguf", quant="Q4_0").files[0]
    monkeypatch.setattr(effort, "_WIDEST", 100)
    found = convert(TINY, tmp_path / "b.gguf", calibration, quant="Q4_0").files[0]
    one, other = phiconv.evaluate_all([default, found], text[:4000], reference=TINY, context=128)
    assert other.divergence.mean < 0.75 * one.divergence.mean


@pytest.mark.parametrize(("columns", "block", "widths"), [
    (3072, 256, [3072]), (8192, 32, [4096, 4096]), (17920, 256, [3584] * 5), (9000, 9000, [9000]),
])  # fmt: skip
def test_parts_are_whole_blocks(columns, block, widths):
    parts = effort.parts_of(columns, block)
    assert [part.stop - part.start for part in parts] == widths
    assert parts[-1].stop == columns


# ------------------------------------------------------------------------------------------ what it needs


def test_it_measures_by_itself_and_cleans_up(tmp_path, small, text):
    phiconv.calibrate(small[0], [text[:9000]], tmp_path / "c", tokens=1024)
    convert(small[0], tmp_path / "a.gguf", tmp_path / "c", quant="Q4_0")
    phiconv.convert(
        small[0], tmp_path / "b.gguf", quant="Q4_0", choices=BEST, text=[text[:9000]], calibration_tokens=1024
    )
    assert outputs(tmp_path / "a.gguf") == outputs(tmp_path / "b.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "b.gguf.receipt.json", "c"]


def test_an_interrupted_run_goes_on(tmp_path, small, monkeypatch):
    class StopError(Exception):
        pass

    def stop(*_):
        raise StopError

    def stop_at_weights(*step):
        if "blk" in step[2]:
            stop()

    options = {"quant": "Q4_0", "choices": BEST, "calibration_tokens": 1024}
    with pytest.raises(StopError):
        phiconv.convert(small[0], tmp_path / "o.gguf", **options, progress=stop_at_weights)
    assert [p.name for p in tmp_path.iterdir()] == ["o.gguf.calibration"]
    monkeypatch.setattr("phiconv.quality.passing.run_stage", stop)  # it is not measured again
    phiconv.convert(small[0], tmp_path / "o.gguf", **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.gguf", "o.gguf.receipt.json"]


def test_nothing_is_measured_for_what_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("phiconv.quality.text.calibrate", lambda *_, **__: 1 / 0)
    (tmp_path / "o.gguf").touch()
    with pytest.raises(OutputExistsError):
        phiconv.convert(TINY, tmp_path / "o.gguf", quant="Q4_0", choices=BEST)
    # Floats are not quantized, and a plan writes nothing.
    phiconv.convert(TINY, tmp_path / "f.gguf", quant="f16", choices=BEST)
    phiconv.plan(TINY, tmp_path / "p.gguf", quant="Q4_0", choices=BEST)


def test_a_calibration_of_another_model_is_refused(tmp_path, calibration):
    with pytest.raises(InputError, match="is another model"):
        convert(FIXTURES / "tiny-phi4mini", tmp_path / "o.gguf", calibration, quant="Q4_0")


def test_a_damaged_calibration_is_refused(tmp_path, calibration):
    shutil.copytree(calibration, tmp_path / "c")
    path = tmp_path / "c" / "imatrix.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="is not what was measured"):
        convert(TINY, tmp_path / "o.gguf", tmp_path / "c", quant="Q4_0")


def test_options_that_do_nothing_are_refused(tmp_path, calibration):
    with pytest.raises(UsageError, match="a calibration means nothing"):
        phiconv.convert(TINY, tmp_path / "o.gguf", quant="Q4_0", calibration=calibration)
    with pytest.raises(UsageError, match="nothing to measure for"):
        phiconv.convert(TINY, tmp_path / "o.gguf", quant="Q4_0", text=["a"])
    with pytest.raises(UsageError, match="nothing to measure for"):
        convert(TINY, tmp_path / "o.gguf", calibration, quant="Q4_0", text=["a"])
    with pytest.raises(UsageError, match="--effort means nothing for safetensors"):
        phiconv.plan(TINY, tmp_path / "s", to="safetensors", choices=BEST)


def test_types_that_need_importance_have_it(tmp_path, calibration):
    phiconv.plan(TINY, tmp_path / "o.gguf", quant="IQ2_XS", choices=BEST)
    plan = phiconv.plan(TINY, tmp_path / "o.gguf", quant="IQ2_XS", choices=BEST, calibration=calibration)
    weighted = [s.encoding.name for s in plan.package.streams if s.importance is not None]
    assert weighted.count("iq2_xs") > 10
    assert plan.size == phiconv.plan(TINY, tmp_path / "o.gguf", quant="IQ2_XS", choices=BEST).size


def test_a_gguf_is_a_source(tmp_path, small, monkeypatch):
    monkeypatch.setattr(sequential, "pays", lambda _: False)  # from a GGUF to a GGUF it never does
    phiconv.convert(small[0], tmp_path / "h.gguf", quant="bf16")
    a = convert(tmp_path / "h.gguf", tmp_path / "a.gguf", small[1], quant="Q4_0").files[0]
    b = convert(small[0], tmp_path / "b.gguf", small[1], quant="Q4_0").files[0]
    models = [phiconv.open_model(path).stored for path in (a, b)]
    assert all(np.array_equal(*(phiconv.read(m[name]) for m in models)) for name in models[0])


def test_tokens_of_a_text_are_those_of_its_tokenizer(text):
    model = phiconv.open_model(TINY)
    assert len(encode(model.tokenizer, text[:4000])) > 1200  # enough for the divergences above


def test_a_plan_reads_no_array(tmp_path, calibration, monkeypatch):
    monkeypatch.setattr("phiconv_formats.calibration.reader.open_array", lambda *_: 1 / 0)
    monkeypatch.setattr("phiconv.conversion.effort.embedding_moments", lambda *_: 1 / 0)
    plan = phiconv.plan(TINY, tmp_path / "o.gguf", quant="q4", choices=BEST, calibration=calibration)
    assert sum(stream.moments is not None for stream in plan.package.streams) == 26
