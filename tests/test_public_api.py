"""What ``import phiconv`` offers, and what it costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

import phiconv
from paths import ROOT
from phiconv import api, errors

# Nothing that could reach a network, start a process or run a model's code, and none of the large libraries.
FORBIDDEN = {
    "asyncio", "ftplib", "http", "jinja2", "multiprocessing", "onnx", "requests", "safetensors", "smtplib",
    "socket", "ssl", "subprocess", "tokenizers", "torch", "tqdm", "transformers", "urllib.request", "urllib3",
}  # fmt: skip

REPORT = """
import sys
before = set(sys.modules)
{code}
import json
print("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter imports to run this."""
    command = [sys.executable, "-c", REPORT.format(code=code)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def documented() -> set[str]:
    """The names in the first columns of the tables in docs/library.md."""
    names = set()
    text = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    for table in re.findall(r"^\| name \|.*\n\|[-| ]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        names |= set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))
    return names


def test_every_public_name_is_documented_and_no_other():
    assert {*documented(), "__version__"} == set(phiconv.__all__)


def test_names_are_sorted_and_listed_once():
    assert list(phiconv.__all__) == sorted(set(phiconv.__all__))


@pytest.mark.parametrize("name", phiconv.__all__)
def test_name_resolves(name):
    assert getattr(phiconv, name) is not None
    assert name in dir(phiconv)
    if name != "__version__":
        assert getattr(phiconv, name).__doc__


def test_star_import_gives_what_is_listed():
    namespace = {}
    exec("from phiconv import *", namespace)  # noqa: S102 - the statement is what is tested
    assert set(phiconv.__all__) <= set(namespace)


def test_public_names_are_those_of_their_modules():
    raised = {name for name in errors.__all__ if name != "printable"}
    assert set(phiconv.__all__) == {"__version__", *api.__all__, *raised}


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = phiconv.nothing


def test_errors_are_drawn_as_they_are():
    drawn = set(re.findall(r"(\w+Error)\b", errors.__doc__.partition("A message")[0]))
    assert {name for name in drawn if hasattr(errors, name)} == set(errors.__all__) - {"printable"}
    assert errors.UsageError("x").exit_code == 2
    assert {getattr(errors, n).exit_code for n in errors.__all__ if n not in ("UsageError", "printable")} == {
        1
    }


def test_import_is_cheap():
    assert not loaded_by("import phiconv") & {*FORBIDDEN, "numpy", "click", "gguf", "rich"}


def test_help_is_cheap():
    code = "from phiconv.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not loaded_by(code) & {*FORBIDDEN, "numpy", "gguf", "rich"}


@pytest.mark.parametrize("model", ["tiny-phi3", "tiny-phi4mini"])
def test_conversion_stays_offline(model, tmp_path):
    arguments = [str(ROOT / "fixtures" / model), str(tmp_path / "x.gguf"), "--q4"]
    modules = loaded_by(f"from phiconv.cli import main\nmain({arguments!r}, standalone_mode=False)")
    assert (tmp_path / "x.gguf").exists()
    assert "numpy" in modules  # it did look
    assert not modules & FORBIDDEN


@pytest.mark.parametrize("target", ["mlx", "safetensors"])
def test_the_check_of_safetensors_stays_offline(target, tmp_path):
    arguments = [str(ROOT / "fixtures/tiny-phi3"), str(tmp_path / "x"), "--to", target, "--quiet"]
    code = "from phiconv.cli import main\nmain({!r}, standalone_mode=False)"
    planned = loaded_by(code.format(["plan", *arguments[:-1]]))
    assert not planned & FORBIDDEN
    assert loaded_by(code.format(arguments)) & FORBIDDEN == {"safetensors"}


def test_evaluation_stays_offline(tmp_path):
    (tmp_path / "text.txt").write_text("The function returns a list of names. " * 9, encoding="utf-8")
    arguments = [
        "evaluate",
        str(ROOT / "fixtures/tiny-phi3"),
        "--text",
        str(tmp_path / "text.txt"),
        "--context",
        "64",
    ]
    modules = loaded_by(f"from phiconv.cli import main\nmain({arguments!r}, standalone_mode=False)")
    assert "phiconv.forward.interpreter" in modules
    assert not modules & FORBIDDEN
