"""Every command, on everything that is no model: one line, what it is and what to do, and no new file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bad_paths import KINDS
from phiconv.cli import main

COMMANDS = {
    "inspect": ("inspect", "PATH"),
    "plan": ("plan", "PATH", "new/o.gguf"),
    "convert": ("convert", "PATH", "new/o.gguf"),
    "compare": ("compare", "PATH", "PATH"),
    "evaluate": ("evaluate", "PATH", "--text", "text.txt"),
}
NEEDS_RIGHTS = {"forbidden file", "forbidden folder"}  # which root always has


def everything(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.skipif(os.name == "nt", reason="pipes, links and rights as on Unix")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_model(tmp_path, monkeypatch, kind):
    if kind in NEEDS_RIGHTS and os.geteuid() == 0:
        pytest.skip("root may read everything")
    monkeypatch.chdir(tmp_path)
    Path("new").mkdir()
    Path("text.txt").write_text("some words " * 40)
    make, expected = KINDS[kind]
    path = str(make(tmp_path))
    path = os.path.relpath(path) if path.startswith(str(tmp_path)) else path
    wrong = []
    for command, words in COMMANDS.items():
        before, start = everything(tmp_path), time.process_time()
        result = CliRunner().invoke(main, [*(path if w == "PATH" else w for w in words), "--json"])
        seconds = time.process_time() - start
        code = expected if isinstance(expected, str) else expected.get(command, expected.get("*"))
        wrong += [f"{command}: {fault}" for fault in faults(result, code, seconds)]
        if code:
            assert everything(tmp_path) == before
    assert wrong == []


def faults(result, code, seconds):
    """What is wrong with an answer."""
    told = json.loads(result.stdout).get("error", {}) if result.stdout else {}
    line = result.stderr.strip("\n")
    yield from [f"{told} instead of {code}"] if told.get("code", "") != code else []
    yield from [f"took {seconds:.1f} s"] if seconds > 1 else []
    if code:
        yield from [f"exit code {result.exit_code}"] if result.exit_code != 1 else []
        yield from [f"no hint: {told}"] if not told.get("hint") else []
        yield from [f"not one line: {line}"] if not line.isprintable() else []
        yield from [f"no line: {line}"] if not line.startswith("phiconv: ") or "; " not in line else []
