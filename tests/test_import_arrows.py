"""Imports run one way: from the command line down to the tensors, and never back."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import pytest

from paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

# The wings, from the ground up: each may import itself and those before it. Imports for types only count too.
WINGS = (
    "phiconv._version",
    "phiconv.errors",
    "phiconv.units",
    "phiconv.spelling",
    "phiconv.brief",
    "phiconv.runtimes",
    "phiconv.bundling",
    "phiconv.tokenization",
    "phiconv.ir",
    "phiconv.quantizers",
    "phiconv.forward",
    "phiconv.perception",
    "phiconv.architectures",
    "phiconv_formats",
    "phiconv.recipes",
    "phiconv.conversion",
    "phiconv.guide",
    "phiconv.quality",
    "phiconv.verification",
    "phiconv.reporting",
    "phiconv.api",
    "phiconv.cli",
    "phiconv",
)

# The front door: all that stands outside the wings.
FRONT = ("phiconv", "phiconv.__main__")

# Wings below that are closed to a wing all the same, but for some doors.
CLOSED = {
    "phiconv_formats": {
        "phiconv.quantizers": ("phiconv.quantizers.joining",),
        "phiconv.forward": (
            "phiconv.forward.ops",
            "phiconv.forward.encoder_ops",
            "phiconv.forward.sound_ops",
        ),
    },
    "phiconv.recipes": {"phiconv.forward": ()},
}

# Libraries that one place has to itself.
ONLY_IN = {
    "distributed": "phiconv.conversion.machines",
    "click": "phiconv.cli",
    "cryptography": "phiconv.verification.openssf",
    "click_default_group": "phiconv.cli",
    "rich": "phiconv.cli.report",
    "gguf": "phiconv_formats.gguf",
    "model_signing": "phiconv.verification.openssf",
    "multiprocessing": "phiconv.conversion.processes",
    "numba": "phiconv.quantizers.compiled",
    "onnx": "phiconv_formats.onnx",
    "PIL": "phiconv.perception.files",
    "safetensors": "phiconv_formats.shared.safetensors_check",
    "yaml": "phiconv_formats.gguf",
}

# What would open a connection, start a process, or run what a file says; and the only modules that may.
MAY = {
    "phiconv.bundling.bundle": {"subprocess"},  # pip, where a bundle is made
    "phiconv.bundling.wheels": {"importlib"},  # its metadata, no modules
    "phiconv.quantizers.compiled": {"importlib"},  # to see whether numba is there
}
NOWHERE = {
    "asyncio", "ftplib", "http", "importlib", "jinja2", "marshal", "pickle", "requests",
    "runpy", "shelve", "smtplib", "socket", "ssl", "subprocess", "torch", "transformers", "urllib", "xmlrpc",
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of ours by name."""
    found = {}
    for root, folders in (
        (ROOT / "converter", "phiconv"),
        (ROOT / "formats", "phiconv_formats"),
        (ROOT, "benchmarks"),
    ):
        for path in (root / folders).rglob("*.py"):
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


def wing(module: str) -> str:
    """The wing that a module belongs to."""
    return next(w for w in sorted(WINGS, key=len, reverse=True) if f"{module}.".startswith(f"{w}."))


def may_import(own: str, module: str) -> bool:
    """Whether a module of the wing ``own`` may import another one of ours."""
    other = wing(module)
    doors = CLOSED.get(own, {}).get(other, (module,))
    return WINGS.index(other) <= WINGS.index(own) and module in doors


def violations(name: str, text: str, known: set[str], *, is_package: bool = False) -> list[str]:
    """What a module imports against the tables."""
    if wing(name) == "phiconv" and name not in FRONT:
        return [f"{name} is in no wing"]
    wrong = []
    for module in sorted(imports(name, text, known, is_package=is_package)):
        top = module.split(".")[0]
        if top in ("phiconv", "phiconv_formats"):
            if not may_import(wing(name), module):
                wrong.append(f"{name} imports {module}")
        elif top in NOWHERE - MAY.get(name, set()):
            wrong.append(f"{name} imports {module}, which nothing may")
        elif top in ONLY_IN and not f"{name}.".startswith(f"{ONLY_IN[top]}."):
            wrong.append(f"{name} imports {module}, which only {ONLY_IN[top]} may")
    return wrong


def graph() -> dict[str, set[str]]:
    """Which of our modules every module of ours imports, anywhere in its text."""
    known = modules()
    return {
        name: {
            module
            for module in imports(
                name, path.read_text(encoding="utf-8"), {*known}, is_package=path.name == "__init__.py"
            )
            if module in known and module != name
        }
        for name, path in known.items()
    }


def rooms(edges: dict[str, set[str]], package: str) -> dict[str, set[str]]:
    """Which children of a package import which others; what is inside a child counts as the child."""

    def child(module: str) -> str:
        return ".".join(module.split(".")[: package.count(".") + 2])

    inside = {name for name in edges if f"{name}.".startswith(f"{package}.")}
    found: dict[str, set[str]] = {}
    for name in inside:
        found.setdefault(child(name), set()).update(child(module) for module in edges[name] & inside)
    return {name: others - {name} for name, others in found.items()}


def test_imports_follow_the_arrows():
    known = {name: path for name, path in modules().items() if not name.startswith("benchmarks")}
    wrong = [
        line
        for name, path in known.items()
        for line in violations(
            name, path.read_text(encoding="utf-8"), set(known), is_package=path.name == "__init__.py"
        )
    ]
    assert wrong == []


def test_there_is_no_circle_of_modules_and_none_of_the_rooms_of_a_package():
    edges = graph()
    assert list(TopologicalSorter(edges).static_order())
    packages = {name for name in edges if any(other.startswith(f"{name}.") for other in edges)} - {"phiconv"}
    assert {"phiconv.quantizers", "phiconv_formats", "phiconv_formats.onnx"} <= packages
    for package in packages:
        assert list(TopologicalSorter(rooms(edges, package)).static_order())


def test_a_circle_of_rooms_is_seen():
    edges = {"p.a.x": {"p.b.y"}, "p.a.z": set(), "p.b.y": set(), "p.b.w": {"p.a.z"}, "p": set()}
    assert rooms(edges, "p") == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.a"}}
    with pytest.raises(CycleError):
        list(TopologicalSorter(rooms(edges, "p")).static_order())


def test_the_tables_name_no_ghost():
    doors = {name for some in CLOSED.values() for wing, doors in some.items() for name in (wing, *doors)}
    assert {*WINGS, *CLOSED, *doors, *ONLY_IN.values()} <= set(modules())


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
        (
            "phiconv.quantizers.ggml.affine",
            "from phiconv.forward.ops import Ops",
            "imports phiconv.forward.ops",
        ),
        ("phiconv.ir", "import phiconv_formats.gguf.types", "imports phiconv_formats.gguf.types"),
        ("phiconv.errors", "from .ir import Tensor", "imports phiconv.ir"),
        ("phiconv.conversion.planning", "import click", "which only phiconv.cli may"),
        ("phiconv.conversion.source", "import urllib.request", "which nothing may"),
        ("phiconv_formats.gguf.writer", "from phiconv.forward import layers", "phiconv.forward.layers"),
        ("phiconv.brand_new", "", "is in no wing"),
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
        ("phiconv_formats.gguf.writer", "from ..shared.output import Package\nfrom gguf import constants"),
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
    text = "from .reader import open_gguf\nfrom ..shared.files import InputFile\nfrom . import types"
    expected = {"phiconv_formats.gguf.reader", "phiconv_formats.shared.files", "phiconv_formats.gguf.types"}
    assert imports("phiconv_formats.gguf", text, set(modules()), is_package=True) == expected
