"""The commands that compute a model, as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import phiconv
from paths import FIXTURES
from phiconv.cli import main
from phiconv_formats.gguf.imatrix import read_imatrix

TINY = FIXTURES / "tiny-phi3"


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs a command in a folder with a short text; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_bytes((FIXTURES / "test.txt").read_bytes()[:1500])

    def run(*arguments):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


def test_evaluate(cli):
    code, stdout, _ = cli("evaluate", TINY, "--text", "text.txt", "--context", 128)
    assert code == 0
    lines = stdout.splitlines()
    assert len(lines) == 3
    found = phiconv.evaluate(TINY, Path("text.txt").read_text(), context=128)
    assert lines[0] == f"perplexity {found.perplexity:.4f} ± {found.perplexity_error:.4f}"
    assert lines[2] == f"{found.tokens} tokens scored in {found.windows} windows of 128"


def test_evaluate_with_reference(cli):
    arguments = ("evaluate", TINY, "--text", "text.txt", "--reference", TINY, "--context", 128, "--quiet")
    code, stdout, stderr = cli(*arguments)
    assert (code, stderr) == (0, "")
    assert "ratio 1.00000 ± 0.00000" in stdout
    assert "same likeliest token: 100.00" in stdout
    result = json.loads(cli(*arguments, "--json", "--llama")[1])
    assert result["divergence"]["maximum"] == 0
    assert result["tokens"] == result["windows"] * 63


def test_evaluate_several(cli):
    cli(TINY, "a.gguf", "--q4", "-q")
    cli(TINY, "b.gguf", "--q8", "-q")
    arguments = ("evaluate", "a.gguf", "b.gguf", "--text", "text.txt", "--reference", TINY, "--context", 64)
    code, stdout, _ = cli(*arguments, "--reference-file", "r", "-q")
    assert code == 0
    lines = stdout.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["a.gguf", "b.gguf"]
    assert lines[-1].startswith("reference: perplexity")
    assert max(map(len, lines)) <= 110
    found = json.loads(cli(*arguments, "--reference-file", "r", "-q", "--json")[1])
    assert [each["path"] for each in found] == ["a.gguf", "b.gguf"]
    for each, line in zip(found, lines[1:3], strict=True):
        assert f"{each['divergence']['mean']:.6f}" in line
        assert f"{each['bits_per_weight']:.2f}" in line
    assert found[0]["divergence"]["mean"] > found[1]["divergence"]["mean"]


def test_calibrate(cli):
    arguments = ("calibrate", TINY, "--text", "text.txt", "-o", "i.gguf", "--context", 64)
    assert cli(*arguments, "-q") == (0, "", "")
    matrix = read_imatrix("i.gguf")
    assert matrix.datasets == ("text.txt",)
    assert matrix.weights["blk.5.ffn_down.weight"].size == 768
    code, _, stderr = cli(*arguments)
    assert code == 1
    assert "i.gguf: exists already; give --force" in stderr
    assert cli(*arguments, "--force")[2].endswith(f"i.gguf: the importance matrix of {TINY} on text.txt\n")
    assert sorted(p.name for p in Path().iterdir()) == ["i.gguf", "text.txt"]


def test_calibrate_into_a_folder(cli, monkeypatch):
    arguments = ("calibrate", TINY, "--text", "text.txt", "--text", "more.txt", "-o", "c", "--context", 32)
    Path("more.txt").write_bytes((FIXTURES / "test.txt").read_bytes()[2000:3000])
    arguments = (*arguments, "--calibration-tokens", 256)

    def ends_early(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("phiconv.quality.folder._write_imatrix", ends_early)
        code, stdout, stderr = cli(*arguments)
    assert (code, stdout) == (130, "")
    assert "c.partial keeps what is done: the same command goes on from there" in stderr
    assert cli(*arguments)[2].endswith(f"c: the calibration of {TINY} on text.txt, more.txt\n")
    manifest = json.loads(Path("c/calibration.json").read_text())
    assert manifest["tokens"] == {"fit": 192, "check": 64}
    assert [each["name"] for each in manifest["texts"]] == ["text.txt", "more.txt"]
    assert read_imatrix("c/imatrix.gguf").datasets == ("text.txt", "more.txt")
    code, _, stderr = cli(*arguments)
    assert code == 1
    assert "c: exists already; give --force" in stderr
    assert sorted(p.name for p in Path().iterdir()) == ["c", "more.txt", "text.txt"]


def test_texts_are_supplied(cli):
    arguments = ("calibrate", TINY, "-o", "i.gguf", "--context", 64, "--calibration-tokens", 800)
    assert cli(*arguments)[2].endswith(f"i.gguf: the importance matrix of {TINY} on the texts of phiconv\n")
    matrix = read_imatrix("i.gguf")
    assert (len(matrix.datasets), matrix.chunks) == (12, 12)


def test_generate(cli):
    items = json.loads((TINY / "generations.json").read_text())["items"]
    arguments = ("generate", TINY, "--prompt", items[0]["prompt"], "-n", 6)
    result = json.loads(cli(*arguments, "--json")[1])
    assert result["ids"] == items[0]["greedy_ids"][:6]
    code, stdout, stderr = cli(*arguments)
    assert (code, stdout, stderr) == (0, result["text"] + "\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("evaluate", TINY, "--text", "missing.txt"), 1, "missing.txt: there is no such file"),
        (("evaluate", TINY, "--text", "latin1.txt"), 1, "latin1.txt: byte 1: is not UTF-8"),
        (("evaluate", TINY, "--text", "text.txt", "--context", 5000), 2, "fewer than one window of 5000"),
        (("evaluate", TINY, "--text", "text.txt", "--context", 1), 2, "1 is not in the range"),
        (("evaluate", TINY), 2, "--text is missing; give --text FILE"),
        (("evaluate", "text.txt", "--text", "text.txt"), 1, "not a kind of file"),
        (
            ("calibrate", TINY, "--text", "text.txt", "-o", "no/i.gguf", "--context", 5000),
            2,
            "fewer than one",
        ),
        (("generate", "bare/model.safetensors", "--prompt", "x"), 1, "no tokenizer"),
        (("generate", TINY, "--prompt", ""), 2, "the prompt has no tokens"),
    ],
)
def test_errors(cli, arguments, code, says, make_model):
    Path("latin1.txt").write_bytes(b"x\xe9")
    folder = make_model("bare", "phi3")
    for file in folder.glob("*token*"):
        file.unlink()
    exit_code, stdout, stderr = cli(*arguments)
    assert (exit_code, stdout) == (code, "")
    assert says in stderr
    assert stderr.strip().count("\n") == 0 or stderr.startswith("Usage:")


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "generate"])
def test_help(cli, command):
    code, stdout, _ = cli(command, "--help")
    assert code == 0
    assert "Usage:" in stdout


@pytest.mark.parametrize("dest", ["o.gguf", "m"])
def test_an_interrupted_conversion_says_what_it_keeps(cli, monkeypatch, dest):
    def interrupted(*_, **__):
        Path(f"{dest}.calibration.partial").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("phiconv.quality.text.calibrate", interrupted)
    to = [] if dest == "o.gguf" else ["--to", "mlx"]
    code, _, stderr = cli(TINY, dest, "--q4", "--effort", "best", *to)
    assert code == 130
    assert f"{dest}.calibration.partial keeps what was measured" in stderr
