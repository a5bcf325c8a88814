"""The command ``phiconv report``, and the page and the grid of other commands, as a person meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import phiconv
from phiconv.cli import main


@pytest.fixture(scope="module")
def models(make_miniature, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    source = make_miniature.make_miniature(root / "source")
    phiconv.convert(source, root / "q4.gguf", quant="Q4_0")
    return str(source), str(root / "q4.gguf")


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs a command in a folder with a short text; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("One word after the other. " * 20, encoding="utf-8")

    def run(*arguments):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


def test_report(cli, models):
    arguments = ("report", *models, "-o", "r.html", "--text", "text.txt", "--context", 32)
    code, stdout, stderr = cli(*arguments)
    assert (code, stdout) == (0, "")
    assert re.fullmatch(r"r\.html: [\d.]+ kB\n", stderr)
    first = Path("r.html").read_bytes()
    assert b"Along the text" in first
    code, _, stderr = cli(*arguments)
    assert code == 1
    assert "r.html: exists already; give --force" in stderr
    assert cli(*arguments, "--force", "--quiet", "--jobs", 1) == (0, "", "")
    assert Path("r.html").read_bytes() == first
    assert sorted(path.name for path in Path().iterdir()) == ["r.html", "text.txt"]


def test_pages_of_other_commands(cli, models):
    code, stdout, _ = cli("compare", *models, "--html", "c.html", "--quiet")
    assert code == 0
    assert stdout == cli("compare", *models, "--quiet")[1]
    assert cli("report", *models, "-o", "r.html", "--quiet")[0] == 0
    assert Path("c.html").read_bytes() == Path("r.html").read_bytes()
    evaluate = ("evaluate", models[1], "--text", "text.txt", "--context", 32, "--json", "--quiet")
    code, stdout, _ = cli(*evaluate, "--reference", models[0], "--html", "e.html")
    assert code == 0
    assert json.loads(stdout) == json.loads(cli(*evaluate, "--reference", models[0])[1])
    text = ("--text", "text.txt", "--context", 32)
    assert cli("report", *models, *text, "-o", "r.html", "--quiet", "--force")[0] == 0
    assert Path("e.html").read_bytes() == Path("r.html").read_bytes()


def test_wrong_usage(cli, models):
    code, _, stderr = cli("evaluate", models[1], "--text", "text.txt", "--html", "e.html")
    assert code == 2
    assert "give --reference, too" in stderr
    assert cli("report", models[0], "-o", "r.html")[0] == 2
    assert cli("report", *models)[0] == 2
    code, _, stderr = cli("report", *models, "-o", "r.html", "--text", "text.txt", "--context", 4096)
    assert code == 2
    assert "fewer than one window" in stderr
    assert [path.name for path in Path().iterdir()] == ["text.txt"]


def test_the_grid_in_the_terminal(cli, models):
    lines = cli("compare", *models, "--no-tensors", "--quiet")[1].splitlines()
    start = lines.index("  relative RMSE in percent, by layer:")
    assert lines[start + 1].split() == ["attn", "attn", "attn", "attn", "ffn", "ffn", "ffn"]
    assert lines[start + 2].split() == ["q", "k", "v", "output", "gate", "up", "down"]
    assert len(re.findall(r"\d\.\d\d", lines[start + 3])) == 7
    assert "token_embedding" in lines[start + 4]
    assert max(map(len, lines[start:])) <= 80
    found = phiconv.compare(*models)
    worst = max(t.difference.relative_rmse for t in found.tensors if "layers" in t.name and len(t.shape) > 1)
    assert f"# {100 * worst:.2f}" in lines[start + 3]
