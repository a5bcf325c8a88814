"""The benchmarks run; how fast anything is, no test asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import phiconv
from paths import ROOT
from phiconv import ir

SCRIPT = ROOT / "benchmarks" / "gguf.py"
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    """Makes the folder a package that can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parents[1])
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model as the benchmark writes it, but small."""
    from benchmarks.weights import write_model

    return write_model(tmp_path_factory.mktemp("model"), 2, vocab_size=4096, **SMALL)


def run(*arguments):
    command = [sys.executable, SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "skipped, " in done.stdout or '"skipped"' in done.stdout:
        pytest.skip(f"no released llama.cpp: run fixtures/fetch_llama.py ({done.stdout.strip()})")
    return done.stdout


def test_server_says_why_there_is_nothing_to_compare(capsys):
    from benchmarks import server

    server.main(["--peer", sys.executable])
    assert "llm-compressor: skipped, ModuleNotFoundError" in capsys.readouterr().out


@pytest.mark.runtime
def test_server_compares_whole_folders(model, capsys):
    from benchmarks import server

    peer = os.environ.get("LLM_COMPRESSOR", sys.executable)
    if reason := server.why_not(peer):
        pytest.skip(f"no llm-compressor: {reason}")
    server.main(["--model", str(model), "--recipes", "w4a16,nvfp4a16", "--peer", peer])
    assert capsys.readouterr().out.count("equal byte for byte") == 2


@pytest.mark.runtime
def test_kernels_print_a_table():
    lines = run("kernels", "--types", "q8_0,Q4_K", "--repeat", "1", "--importance").splitlines()
    rows = [line.split() for line in lines]
    start = next(i for i, row in enumerate(rows) if row[:1] == ["type"])
    kinds = [["Q8_0", "no"], ["Q8_0", "yes"], ["Q4_K", "no"], ["Q4_K", "yes"]]
    assert [row[:2] for row in rows[start + 1 : start + 5]] == kinds
    assert [row[-1] for row in rows[start + 1 : start + 5]] == ["equal"] * 4
    assert all(float(cell) > 0 for row in rows[start + 1 : start + 5] for cell in row[2:5])
    assert any("load average" in line for line in lines)
    assert [row[2] for row in rows[-3:]] == ["threads", "processes", "threads"]


@pytest.mark.runtime
def test_kernels_print_json():
    found = json.loads(run("kernels", "--types", "IQ2_XXS", "--repeat", "1", "--source", "f16", "--json"))
    assert found["source"] == "f16"
    assert found["kernels"] == []  # it needs importance weights
    who = ["phiconv, two threads", "phiconv, two processes", "llama.cpp, two threads"]
    assert [row["Q4_K"] for row in found["threads"]] == who


@pytest.mark.runtime
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="os.wait4 is not there")
def test_job_compares_both_routes(model):
    peer = f"{sys.executable} -P -m phiconv {{model}} {{out}} --bf16 --quiet"
    found = json.loads(run("job", "--model", model, "--peer-converter", peer, "--jobs", "2", "--json"))
    assert [row[""] for row in found["outputs"]] == ["equal, byte for byte"] * 2
    assert len(found["ratios"]) == 2
    assert {row["step"] for row in found["steps"]} >= {"phiconv, to Q4_K_M", "llama.cpp, BF16 to Q4_K_M"}


@pytest.mark.runtime
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="os.wait4 is not there")
def test_onnx_job_measures_a_result_without_the_builder_too(model):
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    numbers = ("--prompt", "8", "--tokens", "4", "--repeat", "1")
    script, none = SCRIPT.with_name("onnx.py"), model.parent / "no-python"
    command = [sys.executable, script, "job", "--model", model, *numbers, "--peer", none, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "does not run" in found["skipped"]["model builder"]
    names = ["phiconv", "phiconv --match-runtime"]
    assert [row["step"] for row in found["steps"]] == names
    assert [row["result of"] for row in found["speeds"]] == names
    assert all(row["decode tokens/s"] > 0 < row["prefill tokens/s"] for row in found["speeds"])


def test_weights_of_onnx_models_are_compared(model, tmp_path):
    from benchmarks.onnx_builder import compare

    for name, quant in (("a", "int4"), ("b", "int4"), ("c", "int4-rtn"), ("d", "int4-asym")):
        phiconv.convert(model, tmp_path / name, to="onnx", quant=quant)
    assert str(compare(tmp_path / "a", tmp_path / "b")).endswith("equal byte for byte")
    rounded, asymmetric = (compare(tmp_path / "a", tmp_path / name) for name in "cd")
    assert "model.layers.1.mlp.up_proj.weight codes" in rounded.different
    assert "lm_head.weight codes" not in rounded.different  # both of 8 bits
    assert (rounded.missing, rounded.added) == ([], [])
    assert "model.layers.0.attn.o_proj.weight zero points" in asymmetric.missing
    assert str(asymmetric).startswith("DIFFER: ")


def test_random_model_is_one(model):
    opened = phiconv.open_model(model)
    assert opened.architecture is not None
    assert opened.tokenizer is not None
    assert opened.stored["model.embed_tokens.weight"].shape == (4096, 256)
    weights = phiconv.read(opened.stored["lm_head.weight"])
    assert 0.01 < weights.std() < 0.1
    assert phiconv.plan(model, model.parent / "x.gguf", quant="q4").recipe == "Q4_K_M"


def test_random_model_has_the_real_widths():
    from benchmarks.weights import PHI35_MINI

    real = {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32, "vocab_size": 32064}
    assert real.items() <= PHI35_MINI.items()


def test_tiles_hold_bfloat16_values():
    from benchmarks.weights import TILE, tile

    values = tile("bf16")
    assert (values.shape, values.dtype) == (TILE, ir.BF16.dtype)
    assert np.array_equal(values.astype(np.float32), tile("f32"))


def test_tables_are_aligned():
    from benchmarks.printing import table

    rows = [{"step": "a", "cpu": 1.0, "n": None}, {"step": "long", "cpu": 12.345, "n": None}]
    assert table(rows).splitlines() == ["step  CPU s  n", "a      1.00  -", "long  12.35  -"]


def test_work_measures_every_step(model, capsys):
    from benchmarks import work

    work.main(["--model", str(model), "--tokens", "2", "--json"])
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [row["step"] for row in steps][-2:] == ["evaluate", "generate 2"]
    assert all(row["cpu"] > 0 and row["faults"] > 0 for row in steps)
