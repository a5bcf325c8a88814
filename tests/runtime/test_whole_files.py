"""A quantized file is, byte for byte, the one that llama-quantize makes of the unquantized file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import phiconv
from paths import ROOT
from phiconv.ir.importance import ImportanceMatrix
from phiconv.recipes import override
from phiconv.recipes.gguf import DEFAULTS
from phiconv_formats.gguf.imatrix import read_imatrix

pytestmark = pytest.mark.runtime

RECIPES = [r for r in DEFAULTS if r not in {"F32", "F16", "BF16"}]
NEED_IMPORTANCE = {"Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}
KINDS = [
    "phi",
    "phi-fp16",
    "phi2",
    "phi3",
    "phi3-gqa",
    "phi3-su",
    "phi3-sharded",
    "phi4",
    "phi4mini",
    "phi4mini-transformers5",
    "phimoe",
    "phimoe-transformers5",
    "phimoe-stacked",
    "phimoe-tiny",
    "llama",
    "llama3",
    "llama-bias",
    "qwen2",
    "qwen2-untied",
    "qwen3",
    "qwen3-untied",
    "tiny-phi3",
    "tiny-phi4mini",
]


@pytest.fixture(scope="session")
def llama_libraries():
    """The folder of the released libraries, fetched on the first run."""
    script = ROOT / "fixtures" / "fetch_llama.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(f"no released llama.cpp: run fixtures/fetch_llama.py ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def check(llama_libraries, tmp_path):
    """Compares files of both programs: `jobs` are keyword arguments of llama_release.py's jobs, by name."""

    def run(model, jobs, imatrix=None, source=None):
        if source is None:
            source = phiconv.convert(model, tmp_path / "source.gguf", force=True).files[0]
        if imatrix is not None:
            np.savez(tmp_path / "imatrix.npz", **imatrix.weights)
        todo = []
        for name, job in jobs.items():
            paths = {"source": str(source), "target": str(tmp_path / f"{name}.theirs")}
            weights = {"imatrix": str(tmp_path / "imatrix.npz")} if imatrix else {}
            todo.append({**paths, **weights, **job})
            ours = dict(job, tensor_types=tuple(override("=".join(t)) for t in job.get("tensor_types", ())))
            recipe = ours.pop("recipe")
            choices = phiconv.Choices(importance=imatrix, **ours)
            phiconv.convert(model, tmp_path / f"{name}.gguf", quant=recipe, choices=choices)
        (tmp_path / "jobs.json").write_text(json.dumps(todo))
        command = [sys.executable, ROOT / "tests/helpers/llama_release.py", llama_libraries]
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        done = subprocess.run(
            [*command, tmp_path / "jobs.json"], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        found = {n: differing_bytes(tmp_path / f"{n}.gguf", tmp_path / f"{n}.theirs", imatrix) for n in jobs}
        assert found == dict.fromkeys(jobs, 0)

    return run


def differing_bytes(path, other, imatrix):
    """How many bytes differ; with an importance matrix those of the tensors: only our metadata names it."""
    if imatrix is None:
        data, expected = (np.fromfile(p, np.uint8) for p in (path, other))
    else:
        data, expected = (tensor_bytes(p) for p in (path, other))
    if data.size != expected.size:
        return f"{data.size} bytes instead of {expected.size}"
    return int(np.count_nonzero(data != expected))


def tensor_bytes(path):
    from phiconv_formats.gguf.reader import open_gguf

    file = open_gguf(path)
    return np.concatenate([np.fromfile(path, np.uint8)[file.data_offset :], *types_of(file)])


def types_of(file):
    return [np.array([t.id for t in file.types.values()], np.uint8)]


def importance_of(model, seed=3):
    """Importance weights for every matrix of a model, of very different sizes, some of them zero."""
    random = np.random.default_rng(seed)
    weights = {}
    for tensor in phiconv.plan(model, "x.gguf").package.streams:
        if len(tensor.tensor.shape) > 1:
            matrices = tensor.tensor.shape[0] if len(tensor.tensor.shape) > 2 else 1
            values = random.lognormal(0, 2, matrices * tensor.tensor.columns).astype(np.float32)
            values[random.random(values.size) < 0.05] = 0
            weights[tensor.name] = values
    return ImportanceMatrix(Path("imatrix.gguf"), weights)


@pytest.mark.parametrize("kind", KINDS)
def test_pure_files(kind, model_folder, check):
    pure = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K")
    check(model_folder(kind), {r: {"recipe": r, "pure": True} for r in pure})


@pytest.mark.parametrize("kind", ["phi2", "phi3-gqa", "phimoe", "tiny-phi3"])
def test_every_recipe(kind, model_folder, check):
    check(model_folder(kind), {r: {"recipe": r} for r in RECIPES if r not in NEED_IMPORTANCE})


@pytest.mark.parametrize("kind", ["phi3-gqa", "phimoe-stacked"])
def test_every_recipe_with_importance(kind, model_folder, check):
    model = phiconv.open_model(model_folder(kind))
    check(model, {r: {"recipe": r} for r in RECIPES}, importance_of(model))


def test_trained_model_with_importance(model_folder, check):
    model = phiconv.open_model(model_folder("tiny-phi4mini"))
    recipes = ("IQ1_M", "IQ2_XS", "IQ3_M", "Q3_K_M", "Q4_K_M")
    check(model, {r: {"recipe": r} for r in recipes}, importance_of(model))


def test_many_layers(make_model, check, tmp_path):
    """Enough layers for every part of the rules that count them."""
    folder = make_model(
        tmp_path / "deep", "phi3", num_hidden_layers=19, hidden_size=256, intermediate_size=256
    )
    check(folder, {r: {"recipe": r} for r in RECIPES if r not in NEED_IMPORTANCE})


def test_options(model_folder, check):
    jobs = {
        "ends": {"output_tensor_type": "Q8_0", "token_embedding_type": "Q5_1"},
        "output": {"output_tensor_type": "F16"},
        "embedding": {"token_embedding_type": "Q4_0", "pure": True},
        "leave": {"leave_output_tensor": True},
        "types": {"tensor_types": [[r"blk\.[01]\.ffn_down", "Q8_0"], ["attn", "Q5_K"], ["ffn_down", "Q6_K"]]},
        "types-pure": {"tensor_types": [["attn_qkv", "Q6_K"]], "pure": True},
    }
    for kind in ("tiny-phi3", "tiny-phi4mini"):
        check(model_folder(kind), {f"{kind}-{n}": {"recipe": "Q4_K_M", **job} for n, job in jobs.items()})


def test_requantizing(model_folder, check, tmp_path):
    first = phiconv.convert(model_folder("tiny-phi3"), tmp_path / "first.gguf", quant="Q5_K_M").files[0]
    model = phiconv.open_model(first)
    phiconv.convert(model, tmp_path / "copy.gguf", quant="Q5_K_M")
    assert (tmp_path / "copy.gguf").read_bytes() == first.read_bytes(), "every tensor has its type already"
    with pytest.raises(phiconv.UnsupportedModelError, match="--allow-requantize"):
        phiconv.convert(model, tmp_path / "no.gguf", quant="Q4_K_M")
    jobs = {name: {"recipe": name, "allow_requantize": True} for name in ("Q4_K_M", "Q8_0", "Q4_0", "Q2_K")}
    check(model, jobs, source=first)


def test_rows_that_are_not_whole_blocks(make_model, check, tmp_path):
    # hidden_size 80 and intermediate_size 112 are no multiples of 32: those matrices become F16.
    odd = make_model(tmp_path / "odd", "phi3", hidden_size=80, intermediate_size=112)
    check(odd, {r: {"recipe": r, "pure": True} for r in RECIPES if r not in NEED_IMPORTANCE})
    # And 96 and 160 are multiples of 32, but not of 256.
    small = make_model(
        tmp_path / "small",
        "phi3",
        hidden_size=96,
        intermediate_size=160,
        num_attention_heads=3,
        num_key_value_heads=3,
    )
    check(small, {f"small-{r}": {"recipe": r} for r in RECIPES if r not in NEED_IMPORTANCE})


def test_every_kind_is_tried(make_models):
    assert set(KINDS) == {*make_models.KINDS, "tiny-phi3", "tiny-phi4mini"}


@pytest.mark.parametrize("kind", ["tiny-phi3", "phimoe"])
def test_own_importance_matrix(kind, model_folder, check, tmp_path):
    path = phiconv.calibrate(model_folder(kind), range(100, 228), tmp_path / "measured.gguf", context=64)
    jobs = {r: {"recipe": r} for r in ("IQ4_XS", "Q4_0")}
    check(model_folder(kind), jobs, imatrix=read_imatrix(path))
