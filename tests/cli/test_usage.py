"""What people type by mistake is answered on one line that says what to type instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import phiconv
from paths import FIXTURES, ROOT
from phiconv import errors
from phiconv.cli import main
from phiconv.cli.voice import CODES, error_object
from phiconv.recipes.choices import _WORDS
from phiconv_formats import _ALIASES
from phiconv_formats.litert.targets import TARGETS as LITERT_TARGETS
from phiconv_formats.onnx.targets import TARGETS

TINY = str(FIXTURES / "tiny-phi3")


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(main, [TINY if a == "M" else a for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("convret a b", "unknown command 'convret', and no file or folder of this name; did you mean"),
        ("quantize M o.gguf q4", "unknown command 'quantize', and no file or folder of this name"),
        ("info M", "unknown command 'info', and no file or folder of this name; did you mean inspect?"),
        ("inspekt", "did you mean inspect?"),
        ("nosuch", "unknown command 'nosuch', and no file or folder of this name; phiconv --help lists"),
        ("nosuch --help", "unknown command 'nosuch'"),
        ("nosuch a b", "unknown command 'nosuch'"),
        ("help nosuch", "unknown command 'nosuch'; one of convert"),
        ("M", "DEST is missing; write phiconv SOURCE DEST"),
        ("convert", "SOURCE is missing; write phiconv convert SOURCE DEST"),
        ("inspect", "PATH is missing; write phiconv inspect PATH"),
        ("compare M", "B is missing; write phiconv compare A B"),
        ("evaluate M", "--text is missing; give --text FILE"),
        ("M o.gguf Q4_K_M", "Q4_K_M is a third argument, and convert takes SOURCE and DEST; did you mean"),
        ("M o.gguf x", "x is a third argument, and convert takes SOURCE and DEST; write phiconv"),
        ("inspect M x", "x is a second argument, and inspect takes PATH; write phiconv inspect PATH"),
        ("formats x", "x is a first argument, and formats takes none; write phiconv formats"),
        ("M o.gguf --quants q4", "there is no option --quants; did you mean --quant?"),
        ("M o.gguf --q4_k_m", "there is no option --q4_k_m; did you mean --quant q4_k_m?"),
        ("M o.gguf --int4", "there is no option --int4; did you mean --quant int4?"),
        ("M o.gguf -q4", "there is no option -q4; did you mean --q4?"),
        ("M o --adapters x", "there is no option --adapters; did you mean --adapter?"),
        ("M o --vocabulary x", "there is no option --vocabulary; phiconv convert --help says what it takes"),
        ("M o --format gguf", "there is no option --format; did you mean --to?"),
        ("M o.gguf --overwrite", "there is no option --overwrite; did you mean --force?"),
        ("M o.gguf -x", "there is no option -x; phiconv convert --help says what it takes"),
        ("inspect M --jason", "there is no option --jason; did you mean --json?"),
        ("M o.gguf --quant", "--quant needs a value; write --quant NAME"),
        ("M o.gguf --q4=3", "--q4 takes no value; write --q4 alone"),
        ("--versoin", "there is no option --versoin; did you mean --version?"),
        ("M o.gguf --effort fsat", "'fsat' is not one of 'exact', 'fast', 'best'; did you mean fast?"),
        ("M o.gguf --jobs 0", "--jobs: 0 is not in the range 1<=x<=1024; give a whole number from 1 to 1024"),
        ("M o.gguf -j x", "give a whole number from 1 to 1024"),
        ("M o.gguf --ratio 2", "give a number from 0 to 1"),
        ("M o.gguf --split-max-size lots", "--split-max-size: 'lots' is no size; write it like 2G or 500M"),
        ("M a.gguf --outfile b.gguf", "--outfile b.gguf is not DEST, a.gguf; give one of them"),
        ("M o --to ggufs", "--to ggufs: unknown format; did you mean gguf?"),
        ("M o --to mp3", "--to mp3: unknown format; one of safetensors, gguf, litert, mlx, onnx, openvino"),
        ("M o --to pytorch", "--to pytorch: pytorch is read, and not written; one of"),
        ("M o --to onnx --target cudda", "--target cudda: no such target; did you mean cuda?"),
        ("M o --to mlx --dtype bf61", "--dtype bf61: no such dtype; did you mean bf16?"),
        ("M o.gguf --quant q4_k_n", "did you mean Q4_K_"),
    ],
)  # fmt: skip
def test_wrong_usage(cli, tmp_path, line, says):
    code, stdout, stderr = cli(*line.split())
    assert (code, stdout) == (2, "")
    assert stderr.startswith("phiconv: ")
    assert says in stderr
    assert stderr.count("\n") == 1
    code, stdout, again = cli(*line.split(), "--json")
    assert code == 2
    told = json.loads(stdout)["error"]
    assert told.keys() == {"code", "message", "path", "at", "hint"}
    assert told["code"] == "usage"
    assert told["hint"]
    assert told["message"] in again
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_is_not_this_folder(cli):
    code, _, stderr = cli("M", "")
    assert code == 2
    assert stderr == "phiconv: DEST: an empty name; a variable of the shell may not be set\n"


@pytest.mark.parametrize("word", ["org/name", "nosuch.gguf", "./convret", "no such folder", "phi-9"])
def test_a_source_that_is_not_there_is_no_command(cli, word):
    code, _, stderr = cli(word, "o.gguf")
    assert code == 1
    assert "no such file or folder" in stderr


def test_a_folder_that_is_named_like_a_command_is_a_source(cli, tmp_path):
    (tmp_path / "quantize").mkdir()
    code, _, stderr = cli("quantize", "o.gguf")
    assert code == 1
    assert "an empty folder" in stderr


@pytest.mark.parametrize("line", ["", "help", "--help", "-h"])
def test_help(cli, line):
    code, stdout, stderr = cli(*line.split())
    assert (code, stderr) == (0, "")
    assert stdout.startswith("Usage: ")
    assert "calibrate" in stdout


@pytest.mark.parametrize("line", ["help plan", "help PLAN", "plan --help"])
def test_help_of_a_command(cli, line):
    code, stdout, _ = cli(*line.split())
    assert code == 0
    assert "plan [OPTIONS] SOURCE DEST" in stdout


# -------------------------------------------------------------------------------------------------- spellings


def planned(cli, line):
    code, stdout, stderr = cli(*line.split(), "--json")
    assert code == 0, stderr
    return json.loads(stdout)


@pytest.mark.parametrize(
    "line",
    [
        "M o.gguf --quant q8_0 --dry-run",
        "convert --outfile o.gguf M --outtype q8_0 --dry-run",
        "--outfile o.gguf --outtype Q8-0 M --dry_run",
        "M o.gguf --outfile o.gguf --Q8 --dry-run --effort FAST",
        "PLAN M o.gguf --quant q80",
        "--q8 plan M o.gguf",
        "M -o o.gguf --q8 --dry-run",
    ],
)
def test_one_plan_in_many_words(cli, tmp_path, line):
    found = planned(cli, line)
    assert (found["target"], found["recipe"]) == ("gguf", "Q8_0")
    assert [file["path"] for file in found["files"]] == ["o.gguf"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("GGUF", "gguf"), ("llama.cpp", "gguf"), ("mlx-lm", "mlx"), ("MLX_LM", "mlx"),
        ("onnxruntime", "onnx"), ("onnxruntime-genai", "onnx"), ("ort", "onnx"), ("ov", "openvino"),
        ("HuggingFace", "safetensors"),
        ("hf", "safetensors"),
    ],
)  # fmt: skip
def test_formats_by_their_other_names(cli, name, target):
    assert planned(cli, f"plan M out --to {name}")["target"] == target


def test_the_targets_that_have_spellings_are_those_that_there_are():
    assert {*_WORDS["target"][0]} == {*TARGETS, *LITERT_TARGETS}


def test_types_and_targets_by_their_other_names(cli):
    types = "--tensor-type ffn_down=FP16 --output-tensor-type q5-1 --token-embedding-type BFloat16"
    to = {t["name"]: t["to"] for t in planned(cli, f"plan M o.gguf --q4 {types}")["tensors"]}
    assert [to[f"{n}.weight"] for n in ("blk.3.ffn_down", "output", "token_embd")] == ["f16", "q5_1", "bf16"]
    loud, plain = (planned(cli, f"plan M out --to mlx --q4 --dtype {n}") for n in ("BFLOAT16", "bf16"))
    assert loud["tensors"] == plain["tensors"]
    assert cli("M", "out", "--to", "onnx", "--f16", "--target", "DirectML", "-q")[0] == 0
    assert '"dml"' in Path("out/genai_config.json").read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------- the codes


def test_every_class_has_a_code():
    classes = {getattr(errors, name) for name in errors.__all__} - {errors.printable}
    assert classes <= CODES.keys()
    assert len({*CODES.values()}) == len(CODES)


@pytest.mark.parametrize(
    ("raised", "code", "exit_code", "says"),
    [
        (KeyboardInterrupt(), "interrupted", 130, "interrupted"),
        (MemoryError(), "out_of_memory", 1, "give --jobs 1"),
        (PermissionError(13, "Permission denied", "/x/y"), "system", 1, "/x/y: Permission denied; check"),
        (ZeroDivisionError("by zero"), "unexpected", 1, "ZeroDivisionError: by zero; set PHICONV_DEBUG=1"),
        (errors.ConfigError("a\nb", path="c", at="key d"), "bad_config", 1, "c: key d: a\\nb"),
        (errors.DiskFullError("full"), "disk_full", 1, "full"),
    ],
)
def test_errors_of_all_kinds(cli, monkeypatch, raised, code, exit_code, says):
    def fail(*arguments, **options):
        raise raised

    monkeypatch.delenv("PHICONV_DEBUG", raising=False)
    monkeypatch.setattr("phiconv.api.plan", fail)
    found, stdout, stderr = cli("plan", "M", "o.gguf", "--json")
    assert found == exit_code
    assert json.loads(stdout)["error"]["code"] == code
    assert stderr.startswith("phiconv: ")
    assert says in stderr
    assert stderr.count("\n") == 1
    assert cli("plan", "M", "o.gguf")[1:] == ("", stderr)


def test_what_is_not_known_is_null():
    assert error_object(phiconv.PhiconvError("m")) == {
        "code": "error", "message": "m", "path": None, "at": None, "hint": None,
    }  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_reader_that_has_enough_is_no_error():
    command = [sys.executable, "-m", "phiconv", "inspect", TINY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert b"phiconv:" not in run.stderr.read()


def test_spellings_and_codes_are_documented():
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    missing = [word for word in (*CODES.values(), *_ALIASES) if f"`{word}`" not in text.replace("--to ", "")]
    assert missing == []
