"""Adapters on the command line: merged on the way, looked at, computed with, written by themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import phiconv
from adapters import STORED, merged_logits, stored_adapter
from paths import FIXTURES
from phiconv.cli import main

PLAIN = str(stored_adapter("plain"))


@pytest.fixture
def run():
    def call(*arguments, code=0):
        result = CliRunner().invoke(main, [*map(str, arguments)])
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def base(model_folder):
    return model_folder(STORED["plain"])


def furthest(path):
    ids, expected = merged_logits("plain")
    return np.abs(phiconv.logits(path, ids)[0, ::8] - expected).max()


def test_merged_on_the_way(run, base, tmp_path):
    told = run(base, tmp_path / "a.gguf", "--f32", "--lora", PLAIN)
    assert "is merged: 8 matrices of rank 4, scale 2" in told.stderr
    assert furthest(tmp_path / "a.gguf") < 1e-5
    run(PLAIN, tmp_path / "b.gguf", "--f32", "--base", base)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_weights(run, base, tmp_path):
    run(base, tmp_path / "a.gguf", "--f32", "--lora", f"{PLAIN}=0.25", "--lora", f"{PLAIN}=0.75")
    assert furthest(tmp_path / "a.gguf") < 1e-5
    told = run(base, tmp_path / "b.gguf", "--lora", f"{PLAIN}=much", code=2)
    assert "'much' is no weight; write it like adapter=0.5" in told.stderr


def test_a_plan(run, base, tmp_path):
    found = json.loads(run("plan", base, tmp_path / "a.gguf", "--q8", "--lora", PLAIN, "--json").stdout)
    stored = {tensor["name"]: tensor["from"] for tensor in found["tensors"]}
    assert stored["blk.0.attn_qkv.weight"] == "bf16+lora"
    assert stored["output.weight"] == "bf16"


def test_an_adapter_is_no_source_by_itself(run, tmp_path):
    told = run(PLAIN, tmp_path / "a.gguf", code=1)
    assert "this is an adapter of phi3, and no whole model; give --base" in told.stderr


def test_by_itself(run, base, tmp_path):
    run(PLAIN, tmp_path / "a.gguf", "--base", base, "--adapter-only")
    found = phiconv.open_model(tmp_path / "a.gguf", plain=True)
    assert found.metadata["general.type"].value == "adapter"
    assert found.metadata["adapter.lora.alpha"].value == 8
    assert found.stored["blk.1.attn_qkv.weight.lora_a"].shape == (4, 64)
    assert found.stored["blk.1.attn_qkv.weight.lora_b"].shape == (192, 4)
    assert {tensor.encoding.name for tensor in found.stored.values()} == {"bf16"}
    cases = {
        "takes an adapter and the model": (PLAIN, tmp_path / "b.gguf"),
        "takes an adapter and the model that": (base, tmp_path / "b.gguf", "--lora", PLAIN),
        "and not for mlx": (PLAIN, tmp_path / "b", "--to", "mlx", "--base", base),
        "cannot be Q4_K_M": (PLAIN, tmp_path / "b.gguf", "--q4", "--base", base),
        "has no choices but its type": (PLAIN, tmp_path / "b.gguf", "--pure", "--base", base),
    }
    for says, arguments in cases.items():
        assert says in run(*arguments, "--adapter-only", code=2).stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dora", "cannot add this while it runs: use_dora"),
        ("whole", "the whole tensor model.layers.0.input_layernorm.weight"),
        ("embedding", "an adapter of token_embedding, where embedding and head are one matrix"),
    ],
)
def test_what_llama_cpp_cannot_add(run, model_folder, tmp_path, name, says):
    kind = model_folder(STORED[name])
    told = run(stored_adapter(name), tmp_path / "a.gguf", "--base", kind, "--adapter-only", code=1)
    assert says in told.stderr


def test_inspect(run):
    shown = run("inspect", PLAIN).stdout
    assert ": peft, an adapter (LoRA)" in shown
    assert "scales: [2.0]" in shown
    found = json.loads(run("inspect", PLAIN, "--json").stdout)
    assert found["adapter"]["matrices"] == 8
    assert found["adapter"]["base"] == "phi3"
    assert len(found["tensors"]) == 16


def test_computing_with_it(run, base, tmp_path):
    run(base, tmp_path / "a.gguf", "--f32", "--lora", PLAIN)
    told = run("compare", base, tmp_path / "a.gguf", "--lora", PLAIN, "--json")
    assert json.loads(told.stdout)["total"]["relative_rmse"] == 0
    prompt = ("--prompt", "the", "-n", "3", "--json")
    with_it = json.loads(run("generate", base, "--lora", PLAIN, *prompt).stdout)
    assert with_it == json.loads(run("generate", tmp_path / "a.gguf", *prompt).stdout)
    text = tmp_path / "t.txt"
    text.write_text((FIXTURES / "test.txt").read_text()[:2000])
    arguments = ("evaluate", tmp_path / "a.gguf", "--text", text, "--context", "64", "--json")
    found = json.loads(run(*arguments, "--reference", base, "--reference-lora", PLAIN).stdout)
    other = json.loads(run(*arguments, "--reference", base).stdout)
    assert found["divergence"]["mean"] < 1e-6 < other["divergence"]["mean"]
    run(
        "calibrate",
        base,
        "--lora",
        PLAIN,
        "--text",
        text,
        "--context",
        "64",
        "-o",
        tmp_path / "a.imatrix.gguf",
    )
    run("calibrate", base, "--text", text, "--context", "64", "-o", tmp_path / "b.imatrix.gguf")
    files = [(tmp_path / f"{name}.imatrix.gguf").read_bytes() for name in "ab"]
    assert files[0] != files[1]
