"""Imports run one way: from the command line down to the tensors, and never back."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOTS = (ROOT / "converter", ROOT / "formats")

BASE = {"phiconv.ir.codebooks", "phiconv.ir.encodings", "phiconv.errors", "phiconv.ir"}
DATA = {*BASE, "phiconv.ir.importance", "phiconv.ir.model", "phiconv.tokenization.tokenizer"}

# Which modules of ours a module may import. A package stands for all that is in it, and may import itself;
# imports for types only count too.
ARROWS: dict[str, set[str]] = {
    "phiconv._version": set(),
    "phiconv.ir.codebooks": set(),
    "phiconv.errors": set(),
    "phiconv.tokenization.tokenizer": set(),
    "phiconv.tokenization.added_tokens": {
        "phiconv.tokenization.characters",
        "phiconv.tokenization.tokenizer",
    },
    "phiconv.tokenization.bpe": set(),
    "phiconv.tokenization.characters": set(),
    "phiconv.tokenization.charsmap": {"phiconv.errors"},
    "phiconv.tokenization.encoder": {
        "phiconv.tokenization.added_tokens",
        "phiconv.tokenization.bpe",
        "phiconv.tokenization.characters",
        "phiconv.tokenization.charsmap",
        "phiconv.errors",
        "phiconv.tokenization.tokenizer",
    },
    "phiconv.ir.encodings": {"phiconv.ir.codebooks"},
    "phiconv.ir": {"phiconv.ir.codebooks", "phiconv.ir.encodings", "phiconv.errors"},
    "phiconv.ir.importance": BASE,
    "phiconv.ir.interleaving": {"phiconv.ir"},
    "phiconv.quantizers.joining": {"phiconv.ir", "phiconv.quantizers"},
    "phiconv.ir.model": {*BASE, "phiconv.tokenization.tokenizer"},
    "phiconv.forward.ops": {"phiconv.errors", "phiconv.ir.model"},
    "phiconv_formats": {
        *DATA,
        "phiconv._version",
        "phiconv.forward.ops",
        "phiconv.ir.interleaving",
        "phiconv.quantizers.joining",
    },
    "phiconv.architectures": {*DATA, "phiconv.forward.ops"},
    "phiconv.quantizers": BASE,
    "phiconv.conversion.checks": BASE,
    "phiconv.recipes": {*DATA, "phiconv.quantizers", "phiconv_formats"},
    "phiconv.units": set(),
    "phiconv.conversion.outputs": {"phiconv.errors", "phiconv.units", "phiconv_formats"},
    "phiconv.conversion.source": {*DATA, "phiconv.architectures", "phiconv_formats"},
    "phiconv.conversion.planning": {*DATA, "phiconv.quantizers", "phiconv.recipes", "phiconv_formats"},
    "phiconv.conversion.pipeline": {
        *BASE,
        "phiconv.conversion.checks",
        "phiconv.conversion.outputs",
        "phiconv.conversion.processes",
        "phiconv.quantizers",
        "phiconv_formats",
    },
    "phiconv.conversion.processes": set(),
    "phiconv.quality.comparison": {
        *BASE,
        "phiconv.ir.model",
        "phiconv.conversion.pipeline",
        "phiconv.quantizers",
        "phiconv.conversion.source",
    },
    "phiconv.forward.threads": set(),
    "phiconv.forward.layers": {"phiconv.forward.ops", "phiconv.ir.model"},
    "phiconv.forward.interpreter": {
        *DATA,
        "phiconv.architectures",
        "phiconv.forward.ops",
        "phiconv.forward.layers",
        "phiconv.quantizers",
        "phiconv.forward.threads",
    },
    "phiconv.quality.evaluation": {*DATA, "phiconv.forward.interpreter", "phiconv.forward.layers"},
    "phiconv.quality.calibration": {
        *DATA,
        "phiconv.quality.evaluation",
        "phiconv.forward.interpreter",
        "phiconv.forward.layers",
    },
    "phiconv.quality.text": {
        *DATA,
        "phiconv.quality.calibration",
        "phiconv.quality.evaluation",
        "phiconv.forward.interpreter",
        "phiconv.forward.layers",
        "phiconv.conversion.outputs",
        "phiconv.conversion.source",
        "phiconv.tokenization.encoder",
        "phiconv_formats",
    },
    "phiconv.api": {
        *DATA,
        "phiconv.quality.comparison",
        "phiconv.conversion.pipeline",
        "phiconv.conversion.planning",
        "phiconv.quality.text",
        "phiconv.quantizers",
        "phiconv.recipes",
        "phiconv.conversion.source",
        "phiconv_formats",
    },
    "phiconv.cli.report_quality": {"phiconv.api", "phiconv.errors", "phiconv_formats"},
    "phiconv.cli.report": {
        *DATA,
        "phiconv.api",
        "phiconv.conversion.pipeline",
        "phiconv.conversion.planning",
        "phiconv.units",
    },
    "phiconv.cli.report_formats": {"phiconv.architectures", "phiconv.recipes", "phiconv_formats"},
    "phiconv.cli.report_comparison": {
        "phiconv.quality.comparison",
        "phiconv.errors",
        "phiconv.cli.report",
        "phiconv.units",
    },
    "phiconv.cli.common": {"phiconv.errors"},
    "phiconv.cli.compare": {
        "phiconv.api",
        "phiconv.cli.common",
        "phiconv.cli.report",
        "phiconv.cli.report_comparison",
    },
    "phiconv.cli.options": {"phiconv.cli.common"},
    "phiconv.cli.quality": {
        "phiconv.api",
        "phiconv.cli.report",
        "phiconv.cli.report_quality",
        "phiconv.tokenization.encoder",
    },
    "phiconv.cli": {
        "phiconv._version",
        "phiconv.api",
        "phiconv.cli.common",
        "phiconv.cli.compare",
        "phiconv.cli.options",
        "phiconv.cli.quality",
        "phiconv.recipes",
        "phiconv.cli.report",
        "phiconv.cli.report_formats",
    },
    "phiconv": {"phiconv._version", "phiconv.api", "phiconv.errors"},
    "phiconv.__main__": {"phiconv.cli"},
}

PACKAGES = ("phiconv.architectures", "phiconv.quantizers", "phiconv.recipes", "phiconv_formats")

# Libraries that one place has to itself. What belongs to the command line is in cli and cli_*.
ONLY_IN = {
    "click": "phiconv.cli",
    "click_default_group": "phiconv.cli",
    "rich": "phiconv.cli.report",
    "gguf": "phiconv_formats.gguf",
    "multiprocessing": "phiconv.conversion.processes",
    "onnx": "phiconv_formats.onnx",
    "yaml": "phiconv_formats.gguf",
}

# What would open a connection, start a process, or run what a file says.
NOWHERE = {
    "asyncio", "ftplib", "http", "importlib", "jinja2", "marshal", "pickle", "requests",
    "runpy", "shelve", "smtplib", "socket", "ssl", "subprocess", "torch", "transformers", "urllib", "xmlrpc",
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of ours by name."""
    found = {}
    for root in ROOTS:
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, text: str, known: set[str], *, is_package: bool) -> set[str]:
    """Full names of the modules that a module's text imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return found


def group(module: str) -> str | None:
    """The entry of `ARROWS` that a module belongs to."""
    if module in ARROWS:
        return module
    return next((package for package in PACKAGES if module.startswith(f"{package}.")), None)


def violations(name: str, text: str, known: set[str], *, is_package: bool = False) -> list[str]:
    """What a module imports against the tables."""
    own = group(name)
    if own is None:
        return [f"{name} is not in the table"]
    wrong = []
    for module in sorted(imports(name, text, known, is_package=is_package)):
        top = module.split(".")[0]
        if top in ("phiconv", "phiconv_formats"):
            if group(module) not in {own, *ARROWS[own]}:
                wrong.append(f"{name} imports {module}")
        elif top in NOWHERE:
            wrong.append(f"{name} imports {module}, which nothing may")
        elif top in ONLY_IN and not f"{name}.".startswith((f"{ONLY_IN[top]}.", f"{ONLY_IN[top]}_")):
            wrong.append(f"{name} imports {module}, which only {ONLY_IN[top]} may")
    return wrong


def test_imports_follow_the_arrows():
    known = modules()
    wrong = [
        line
        for name, path in known.items()
        for line in violations(
            name, path.read_text(encoding="utf-8"), set(known), is_package=path.name == "__init__.py"
        )
    ]
    assert wrong == []


def test_the_table_has_no_circle_and_no_ghost():
    # phiconv itself is the front door: it shows what phiconv.api has.
    assert list(TopologicalSorter(ARROWS).static_order())
    assert set(ARROWS) <= set(modules())


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        (
            "phiconv_formats.gguf.writer",
            "from phiconv.conversion.pipeline import run",
            "imports phiconv.conversion.pipeline",
        ),
        ("phiconv_formats.gguf.writer", "from phiconv import recipes", "imports phiconv.recipes"),
        ("phiconv_formats.gguf.writer", "import phiconv", "imports phiconv"),
        (
            "phiconv_formats.shared.rows",
            "def f():\n    from phiconv.quantizers import encode",
            "phiconv.quantizers",
        ),
        ("phiconv.quantizers.ggml.affine", "from phiconv.ir.model import Model", "imports phiconv.ir.model"),
        ("phiconv.ir", "import phiconv_formats.gguf.types", "imports phiconv_formats.gguf.types"),
        ("phiconv.errors", "from .ir import Tensor", "imports phiconv.ir"),
        ("phiconv.conversion.planning", "import click", "which only phiconv.cli may"),
        ("phiconv.conversion.source", "import urllib.request", "which nothing may"),
        ("phiconv.brand_new", "", "is not in the table"),
    ],
)
def test_the_checker_sees(name, text, fault):
    found = violations(name, text, set(modules()))
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("phiconv_formats.gguf.writer", "from .types import GgmlType\nfrom phiconv import ir\nimport numpy"),
        ("phiconv_formats.gguf.writer", "from ..output import Package\nfrom gguf import constants"),
        (
            "phiconv.quantizers.ggml.affine",
            "from phiconv.quantizers.numerics.tiles import quads\nfrom phiconv.ir import Q4_0",
        ),
        ("phiconv.cli", "def f():\n    from phiconv import api\n    import click"),
    ],
)
def test_the_checker_lets_pass(name, text):
    assert violations(name, text, set(modules())) == []


def test_relative_imports_of_a_package():
    text = "from .reader import open_gguf\nfrom ..files import InputFile\nfrom . import types"
    expected = {"phiconv_formats.gguf.reader", "phiconv_formats.shared.files", "phiconv_formats.gguf.types"}
    assert imports("phiconv_formats.gguf", text, set(modules()), is_package=True) == expected
