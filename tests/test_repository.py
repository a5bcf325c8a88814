"""The repository as a whole: what its texts promise, and what nothing in it may hold."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import click
import pytest

import phiconv
from paths import ROOT
from phiconv.cli import main

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

MAX_FILE = 400
MAX_FUNCTION = 50

# Reasons, not excuses: what is longer than that, and why.
LONGER_FILES: dict[str, str] = {}
LONGER_FUNCTIONS: dict[str, str] = {}

# Written such that this file does not match itself.
FOREIGN = {
    "a path of one machine": re.compile(r"(?<![\w.-])/(?:root|home|work|Users)/|[A-Z]:\\Users\b"),
    "an address of a package registry": re.compile(
        r"pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|(?:index|extra)[-]url|extra[-]index", re.IGNORECASE
    ),
}
TEXTS = {".cfg", ".ini", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}


def files() -> list[Path]:
    """The files of the repository; without git, whatever an archive of the sources holds."""
    git = shutil.which("git")
    if git is not None and (ROOT / ".git").exists():
        command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    found = (path for path in ROOT.rglob("*") if path.is_file())
    return [path for path in found if not any(p.startswith(".venv") for p in path.relative_to(ROOT).parts)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts() -> list[Path]:
    """What people wrote: code, prose and settings, not data."""
    named = {"LICENSE", "NOTICE", "NOTICE.txt", "constraints.txt", ".gitignore", "run"}
    return [path for path in files() if path.suffix in TEXTS or path.name in named]


def python_files() -> list[Path]:
    return [path for path in files() if path.suffix == ".py"]


def prose() -> list[Path]:
    return [path for path in files() if path.suffix == ".md"]


def test_nothing_is_tied_to_one_machine():
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{name_of(path)}:{number}: {what}" for what, p in FOREIGN.items() if p.search(line)]
    assert found == []


@pytest.mark.parametrize("text", ["see /{}/x", "C:\\Users\\me", "--{}-url=x", "https://{}.org/simple"])
def test_the_patterns_find_what_they_are_for(text):
    words = ("home", "index", "pypi")
    assert any(p.search(text.format(word)) for word in words for p in FOREIGN.values())
    assert not any(p.search("a/home/b, index_url, https://example.org/work") for p in FOREIGN.values())


# ----------------------------------------------------------------------------------------------------- code


def function_lengths(text: str) -> dict[str, int]:
    """Lines of every function by name, its docstring not counted."""
    lengths = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
            lengths[node.name] = max(lengths.get(node.name, 0), node.end_lineno - node.lineno + 1 - docstring)
    return lengths


def test_function_lengths_are_counted_without_docstrings():
    text = 'def f():\n    """One\n    two.\n    """\n    return 1\n\nclass C:\n    def g(self): pass\n'
    assert function_lengths(text) == {"f": 2, "g": 1}


def test_files_are_short():
    long = {name_of(p) for p in python_files() if len(p.read_text(encoding="utf-8").splitlines()) >= MAX_FILE}
    assert long == set(LONGER_FILES)


def test_functions_are_short():
    long = set()
    for path in python_files():
        lengths = function_lengths(path.read_text(encoding="utf-8"))
        long |= {f"{name_of(path)}:{name}" for name, length in lengths.items() if length >= MAX_FUNCTION}
    assert long == set(LONGER_FUNCTIONS)


def test_packages_are_packages():
    for root in (ROOT / "converter", ROOT / "formats"):
        for folder in {path.parent for path in root.rglob("*.py")} - {root}:
            assert (folder / "__init__.py").exists(), folder
    assert (ROOT / "converter/phiconv/py.typed").exists()
    assert (ROOT / "formats/phiconv_formats/py.typed").exists()
    # pytest imports test files by path, and two of them may have one name.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


# -------------------------------------------------------------------------------------------------- promises


def set_up_commands() -> list[str]:
    """The commands under "Set up" in README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Set up\n")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def test_two_commands_set_everything_up():
    commands = set_up_commands()
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)


def test_ci_runs_the_tests_as_readme_does():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8").replace(".venv-ci/", ".venv/").splitlines()
    install, test = (part.strip() for part in set_up_commands()[1].split("&&"))
    assert f"run {test}" in script
    assert f"run {install}".replace("pip install", "pip install -q").replace("[test]", "[test,dev]") in script
    assert (ROOT / ".ci/run").stat().st_mode & 0o100 or sys.platform == "win32"


def test_first_command_ends_with_a_gguf(tmp_path):
    *_, last = set_up_commands()[0].split("&&")
    program, source, target, *options = shlex.split(last)
    assert program == ".venv/bin/phiconv"
    command = [sys.executable, "-m", "phiconv", str(ROOT / source), target, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = (tmp_path / target).read_bytes()
    assert data[:4] == b"GGUF"
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert (tmp_path / target).read_bytes() == data


def test_changelog_has_this_version():
    assert re.search(
        rf"^## .*\b{re.escape(phiconv.__version__)}\b",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )


@pytest.mark.parametrize("path", prose(), ids=name_of)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_every_option_is_documented():
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for name, command in main.commands.items():
        assert f"phiconv {name}" in text
        for option in command.params:
            if isinstance(option, click.Option):
                assert any(f"`{word}" in text for word in (*option.opts, *option.secondary_opts)), option.opts


def test_every_recipe_and_class_is_documented():
    from phiconv.architectures import ARCHITECTURES
    from phiconv.cli.report_formats import family_lines
    from phiconv.recipes import TARGETS

    pages = {
        "gguf": "quantization.md",
        "litert": "litert.md",
        "mlx": "mlx.md",
        "onnx": "onnx.md",
        "openvino": "openvino.md",
        "safetensors": "safetensors.md",
        "compressed-tensors": "servers.md",
        "gptq": "servers.md",
        "awq": "servers.md",
    }
    models = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    names = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    for name, target in TARGETS.items():
        text = (ROOT / "docs" / pages[name]).read_text(encoding="utf-8")
        for family in target.RECIPES.families:
            assert [stem for stem in family.stems if f"`{stem}`" not in text] == []
            assert name == "gguf" or all(line in names for line in family_lines(family))
    assert all(f"`{name}`" in models for a in ARCHITECTURES.values() for name in a.classes)


def normalized(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_constraints_pin_what_the_checks_need():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(?: ; .+)?", pin) for pin in pins)
    project = PROJECT["project"]
    needed = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    assert {normalized(r) for r in needed} - {"phiconv"} <= {normalized(pin) for pin in pins}
