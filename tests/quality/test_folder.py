"""Calibration folders against plain sums in float64, and what becomes of runs that end early."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import phiconv
from adapters import low_rank, write_adapter
from paths import FIXTURES, ROOT
from phiconv.conversion.identity import check_identity, identity_of
from phiconv.errors import InputError, OutputExistsError, UsageError, WeightError
from phiconv.forward.interpreter import compute
from phiconv.forward.stages import stages_of
from phiconv.ir.model import Role
from phiconv.quality.documents import Document, chosen_apart
from phiconv.quality.text import calibrate
from phiconv.quality.texts import supplied_texts
from phiconv.recipes import Choices
from phiconv_formats.calibration.reader import open_calibration
from phiconv_formats.gguf.imatrix import read_imatrix
from phiconv_formats.gguf.imatrix_writer import measured_matrices

KINDS = ("tiny-phi3", "phi", "phi4mini", "phimoe", "llama", "qwen2")
IDS = (np.arange(2200) * 7919 + np.arange(2200) ** 2 // 5) % 1900 + 60


def plain(model, windows):
    """What goes into each matrix by role and expert, float64."""
    found = {}
    for batch in np.array_split(windows, max(len(windows) // 16, 1)):
        result = compute(
            model,
            batch,
            watch=lambda role, x, expert: found.setdefault((role, expert), []).append(x.astype(np.float64)),
        )
        found.setdefault((Role("output"), None), []).append(result.hidden.astype(np.float64))
    return {key: np.concatenate(parts) for key, parts in found.items()}


def close(found, x, rtol):
    wanted = x.T @ x / max(len(x), 1)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - wanted) <= rtol * np.linalg.norm(wanted)
    np.testing.assert_array_equal(found, found.T)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("count", [40, 2200], ids=["inputs", "moments"])  # fewer or more tokens than columns
@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_the_inputs(kind, count, model_folder, tmp_path):
    model, ids = phiconv.open_model(model_folder(kind)), IDS[: count if kind != "tiny-phi3" else count // 2]
    path = phiconv.calibrate(model, ids, tmp_path / "c", context=10)
    calibration = open_calibration(path)
    fit, check = chosen_apart([Document("", "", ids)], 10, 8192)
    bos = calibration.manifest.bos
    for windows in (fit, check) if bos is not None else ():
        windows[:, 0] = bos
    parts = plain(model, fit), plain(model, check)
    keys = {*parts[0], *parts[1]}
    assert {r for r, t in model.tensors.items() if len(t.shape) > 1} - {Role("token_embedding")} <= {
        role for role, _ in keys
    }
    forms = set()
    for role, expert in keys:
        moments = calibration.of(role, expert)
        x, y = (part.get((role, expert), np.empty((0, moments.squares.size))) for part in parts)
        assert (moments.fitting.tokens, moments.check().tokens) == (len(x), len(y))
        forms.add(moments.fitting.matrix is not None)
        rtol = 1e-5 if moments.fitting.matrix is not None else 1e-3
        close(moments.fit(), x, rtol)
        close(moments.check().moments(), y, 1e-3)
        both = np.concatenate([x, y])
        close(moments.all(), both, 1e-3)
        close(moments.all(slice(3, 20)), both[:, 3:20], 1e-3)
        np.testing.assert_allclose(moments.diagonal(), (both**2).mean(axis=0), rtol=1e-4, atol=1e-12)
        difference = np.linspace(-1, 1, 2 * x.shape[1], dtype=np.float32).reshape(2, -1)
        wanted = ((y @ difference.T.astype(np.float64)) ** 2).sum(axis=0) / max(len(y), 1)
        np.testing.assert_allclose(moments.check().errors(difference), wanted, rtol=2e-2)
    assert (count == 2200) in forms  # the widest matrices may be of the other form


def test_experts_without_tokens(model_folder, tmp_path):
    model = phiconv.open_model(model_folder("phimoe"))
    calibration = open_calibration(phiconv.calibrate(model, [70, 70, 70, 70], tmp_path / "c", context=2))
    role = Role("experts_down", 0)
    found = [calibration.of(role, expert) for expert in range(4)]
    used = [each for each in found if each is not None]
    assert 2 <= len(used) < 4  # the same token throughout
    assert sum(each.tokens for each in used) == 8
    assert calibration.of(role) is None
    assert calibration.of(role, 4) is None
    assert calibration.of(Role("attn_q", 0), 0) is None
    assert calibration.of(Role("attn_norm", 0)) is None
    assert calibration.of(Role("attn_q", 9)) is None


def test_a_tied_head_is_found_under_both_names(model_folder, tmp_path):
    path = phiconv.calibrate(model_folder("phi4mini"), IDS[:40], tmp_path / "c", context=10)
    calibration = open_calibration(path)
    both = [calibration.of(Role(name)).fit() for name in ("output", "token_embedding")]
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("kind", ["phi", "phimoe"])
def test_importance_matrix_is_the_diagonal(kind, model_folder, tmp_path):
    model = phiconv.open_model(model_folder(kind))
    path = phiconv.calibrate(model, IDS, tmp_path / "c", context=10, dataset="numbers")
    matrix, calibration = read_imatrix(path / "imatrix.gguf"), open_calibration(path)
    assert (matrix.datasets, matrix.chunks) == (("numbers",), 220)
    for name, role in measured_matrices(model).items():
        shape = model.tensors[role].shape
        if len(shape) < 3:
            np.testing.assert_allclose(matrix.weights[name], calibration.of(role).diagonal(), rtol=1e-6)
        for expert, row in enumerate(matrix.weights[name].reshape(shape[0], -1) if len(shape) > 2 else ()):
            moments = calibration.of(role, expert)
            wanted = np.ones_like(row) if moments is None else moments.diagonal()
            np.testing.assert_allclose(row, wanted, rtol=1e-6)
            if moments is not None:
                np.testing.assert_allclose(np.diagonal(moments.all()), row, rtol=1e-3, atol=1e-9)
    plan = phiconv.plan(model, tmp_path / "m.gguf", quant="q4_0", imatrix=path / "imatrix.gguf")
    assert any(s.importance is not None for s in plan.package.streams)


def test_rounding_survives_outliers(make_model, tmp_path, monkeypatch):
    model = phiconv.open_model(make_model(tmp_path / "m", "phi3"))
    exact = []

    def scaled(role, x, expert, *, watch):
        if role == Role("ffn_down", 0):
            x = x * np.exp2(np.linspace(-40, 40, x.shape[1], dtype=np.float32))
            x[1] = 0
            exact.append(x.astype(np.float64))
        watch(role, x, expert)

    from phiconv.quality import passing

    run = passing.run_stage
    monkeypatch.setattr(
        passing, "run_stage", lambda *a: run(*a[:-1], lambda r, x, e: scaled(r, x, e, watch=a[-1]))
    )
    path = phiconv.calibrate(model, IDS[:40], tmp_path / "c", context=10)
    moments = open_calibration(path).of(Role("ffn_down", 0))
    assert moments.fitting.matrix is None
    close(moments.fit(), exact[0], 1e-3)


# ----------------------------------------------------------------------------------------- bytes and resuming


def test_bytes_do_not_depend_on_threads(make_miniature, tmp_path):
    source = make_miniature.make_miniature(tmp_path / "m")
    seen = []
    for threads in ("1", "2"):
        environment = os.environ | {
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "converter"), str(ROOT / "formats")]),
        }
        command = [sys.executable, "-m", "phiconv", "calibrate", source, "--context", "16", "-q", "-o"]
        subprocess.run([*command, tmp_path / threads], check=True, env=environment)
        seen.append(contents(tmp_path / threads))
    assert seen[0] == seen[1]
    manifest = seen[0]["calibration.json"].decode()
    assert [t["name"] for t in json.loads(manifest)["texts"]] == [*supplied_texts()]
    assert str(tmp_path) not in manifest
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("kind", ["phi4mini", "phimoe"])
def test_a_run_goes_on_after_the_last_finished_stage(kind, model_folder, tmp_path, monkeypatch):
    model = phiconv.open_model(model_folder(kind))
    phiconv.calibrate(model, IDS[:300], tmp_path / "whole", context=10)
    expected = contents(tmp_path / "whole")
    monkeypatch.setattr("phiconv.quality.batches.BATCH_TOKENS", 100)
    phiconv.calibrate(model, IDS[:300], tmp_path / "parts", context=10)
    expected = contents(tmp_path / "parts")
    steps = []

    def ends_early(done, total, name):
        steps.append((done, total, name))
        if len(steps) > 5:  # a stage has four batches: somewhere in the next one
            raise KeyboardInterrupt

    target, runs = tmp_path / "c", 0
    while not target.exists():
        steps.clear()
        runs += 1
        try:
            phiconv.calibrate(model, IDS[:300], target, context=10, progress=ends_early)
        except KeyboardInterrupt:
            assert not target.exists()
            assert steps[0][0] < steps[-1][1]
    assert runs >= len(stages_of(model))
    assert steps[-1][0] == steps[-1][1]
    assert contents(target) == expected
    assert not (tmp_path / "c.partial").exists()


def test_a_run_that_ends_between_two_renamings_is_finished_by_the_next(model_folder, tmp_path, monkeypatch):
    target, rename = tmp_path / "c", Path.rename
    for kind in ("phi3", "phi4mini"):
        model = phiconv.open_model(model_folder(kind))
        expected = contents(phiconv.calibrate(model, IDS[:100], target, context=10, force=True))
    older = phiconv.open_model(model_folder("phi3"))
    phiconv.calibrate(older, IDS[:100], target, context=10, force=True)

    def ends(self, other):
        if other == target:
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", ends)
    with pytest.raises(KeyboardInterrupt):
        phiconv.calibrate(model, IDS[:100], target, context=10, force=True)
    monkeypatch.undo()
    assert not target.exists()
    phiconv.calibrate(model, IDS[:100], target, context=10)
    assert contents(target) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def interrupted(model, target, count=9, **options):
    seen = []

    def ends_early(*step):
        seen.append(step)
        if len(seen) == count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phiconv.calibrate(model, IDS[:100], target, context=10, progress=ends_early, **options)


@pytest.mark.parametrize(
    "victim", ["000.attn_q.fit.moments.npy", "000.ffn_down.fit.inputs.npy", "stream.1.npy", "state.json"]
)
def test_damaged_leftovers_do_not_count(victim, model_folder, tmp_path):
    model = phiconv.open_model(model_folder("phi3"))
    phiconv.calibrate(model, IDS[:100], tmp_path / "whole", context=10)
    interrupted(model, tmp_path / "c", 6)
    path = tmp_path / "c.partial" / victim
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    if victim == "state.json":
        with pytest.raises(OutputExistsError, match="no unfinished calibration"):
            phiconv.calibrate(model, IDS[:100], tmp_path / "c", context=10)
        return
    phiconv.calibrate(model, IDS[:100], tmp_path / "c", context=10)
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_leftovers_of_something_else(model_folder, tmp_path):
    model = phiconv.open_model(model_folder("phi3"))
    interrupted(model, tmp_path / "c", 6)
    with pytest.raises(OutputExistsError, match="unfinished calibration of another"):
        phiconv.calibrate(model, IDS[:120], tmp_path / "c", context=10)
    phiconv.calibrate(model, IDS[:120], tmp_path / "c", context=10, force=True)
    phiconv.calibrate(model, IDS[:120], tmp_path / "d", context=10)
    assert contents(tmp_path / "c") == contents(tmp_path / "d")


def test_only_a_calibration_is_replaced(model_folder, tmp_path):
    model = phiconv.open_model(model_folder("phi3"))
    target = tmp_path / "c"
    target.mkdir()
    phiconv.calibrate(model, IDS[:40], target, context=10)  # an empty folder may be there
    with pytest.raises(OutputExistsError, match="give --force"):
        phiconv.calibrate(model, IDS[:60], target, context=10)
    phiconv.calibrate(model, IDS[:60], target, context=10, force=True)
    assert open_calibration(target).manifest.tokens == {"fit": 50, "check": 10}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(OutputExistsError, match="no calibration"):
        phiconv.calibrate(model, IDS[:60], other, context=10, force=True)
    assert (other / "thesis.txt").read_text() == "x"


def test_weights_that_are_not_finite(make_model, tmp_path):
    folder = make_model(tmp_path / "m", "phi3")
    data = bytearray((folder / "model.safetensors").read_bytes())
    at = len(data) // 2
    data[at : at + 4000] = b"\xc0\x7f" * 2000
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightError, match="an input of this matrix is NaN or infinite"):
        phiconv.calibrate(folder, IDS[:40], tmp_path / "c", context=10)
    assert not (tmp_path / "c").exists()


# ------------------------------------------------------------------------------------------- texts and models


def test_several_texts(tmp_path):
    text = (FIXTURES / "test.txt").read_text(encoding="utf-8")
    texts = [text[i * 3000 : (i + 1) * 3000] for i in range(4)]
    model = phiconv.open_model(FIXTURES / "tiny-phi3")
    names = ["a", "b", "c", "d"]
    path = phiconv.calibrate(model, texts, tmp_path / "c", context=32, tokens=512, dataset=names)
    manifest = open_calibration(path).manifest
    assert manifest.tokens == {"fit": 384, "check": 128}
    assert [each.name for each in manifest.texts] == names
    file = phiconv.calibrate(model, texts, tmp_path / "i.gguf", context=32, tokens=512, dataset=names)
    assert read_imatrix(file).datasets == tuple(names)
    assert read_imatrix(file).chunks == 16
    with pytest.raises(UsageError, match="2 names for 4 texts"):
        phiconv.calibrate(model, texts, tmp_path / "d", dataset=["a", "b"])


def test_models_are_told_apart(make_model, tmp_path):
    first = phiconv.open_model(make_model(tmp_path / "a", "phi3", seed=1))
    found, path = identity_of(first), tmp_path / "c"
    again = phiconv.open_model(phiconv.convert(tmp_path / "a", tmp_path / "a.gguf", quant="q4_0").files[0])
    check_identity(found, replace(first, path=tmp_path / "elsewhere"), path)
    check_identity(found, again, path)  # the same model, quantized
    for kind, seed, says in (("phi3", 2, "with other weights"), ("phi3-gqa", 1, "of another shape")):
        other = phiconv.open_model(make_model(tmp_path / f"{kind}{seed}", kind, seed=seed))
        with pytest.raises(InputError, match=says):
            check_identity(found, other, path)


def test_models_with_other_adapters_are_told_apart(make_model, tmp_path):
    folder = make_model(tmp_path / "a", "phi3", seed=1)
    module = "model.layers.0.self_attn.o_proj"
    first, second = (
        write_adapter(tmp_path / name, low_rank(module, 64, 64, seed=seed))
        for name, seed in (("x", 0), ("y", 1))
    )
    plain = phiconv.open_model(folder)
    models = {
        "none": plain,
        "first": phiconv.merge(plain, [first]),
        "second": phiconv.merge(plain, [second]),
        "half": phiconv.merge(plain, [(first, 0.5)]),
        "both": phiconv.merge(plain, [first, second]),
    }
    found = {name: identity_of(model) for name, model in models.items()}
    for name, identity in found.items():
        for other, model in models.items():
            if name == other:
                check_identity(identity, phiconv.merge(model, []), tmp_path / "c")
                continue
            with pytest.raises(InputError, match="other adapters are merged into it, or none"):
                check_identity(identity, model, tmp_path / "c")
    shutil.copytree(first, tmp_path / "z")
    check_identity(found["first"], phiconv.merge(plain, [tmp_path / "z"]), tmp_path / "c")  # wherever it is


def test_a_finished_measurement_of_another_adapter_is_not_used(make_model, tmp_path):
    folder, module = make_model(tmp_path / "a", "phi3", seed=1), "model.layers.0.self_attn.o_proj"
    adapters = [write_adapter(tmp_path / f"{n}", low_rank(module, 64, 64, seed=n)) for n in range(2)]
    options = {"context": 16, "tokens": 128}
    text = (FIXTURES / "test.txt").read_text()[:3000]
    models = [phiconv.merge(phiconv.open_model(folder), [adapter]) for adapter in adapters]
    path = phiconv.calibrate(models[0], text, tmp_path / "c", **options)
    written = (path / "calibration.json").stat().st_mtime_ns
    assert open_calibration(path).manifest.model == identity_of(models[0])
    choices = Choices(effort="best", calibration=open_calibration(path))
    assert phiconv.plan(models[0], tmp_path / "o.gguf", quant="Q4_0", choices=choices).size
    for other in (models[1], phiconv.open_model(folder)):
        with pytest.raises(InputError, match="other adapters are merged"):
            phiconv.plan(other, tmp_path / "o.gguf", quant="Q4_0", choices=choices)
    calibrate(models[0], text, path, **options, force=True, reuse=True)
    assert (path / "calibration.json").stat().st_mtime_ns == written
    calibrate(models[1], text, path, **options, force=True, reuse=True)
    assert open_calibration(path).manifest.model == identity_of(models[1])
