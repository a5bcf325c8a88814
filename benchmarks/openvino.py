"""Compares phiconv with `optimum-cli export openvino`: the same model, the same machine, the same run.

    python benchmarks/openvino.py [--peer OPTIMUM-CLI] [--model FOLDER] [--recipes int4-asym,int8-asym,f16]
    python benchmarks/openvino.py --weights OURS.xml THEIRS.xml

README.md beside this script says what the numbers are. What needs optimum-cli, or OpenVINO GenAI, is skipped,
and said to be, where they are not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_HERE = Path(__file__).resolve().parent
_MODEL = "openvino_model.xml"
_FORMATS = {
    "f16": ["fp16"], "f32": ["fp32"], "int8-asym": ["int8"], "int8-sym": ["int8", "--sym"], "mxfp4": ["mxfp4"]
}  # fmt: skip
_SMALL = {
    "hidden_size": 1536, "intermediate_size": 4096, "num_attention_heads": 24, "num_key_value_heads": 24
}  # fmt: skip
"""Of the random model: 0.54 GB in six layers, of which embedding and head are a third."""


def peer_options(recipe: str) -> list[str]:
    """What optimum-cli takes for one of our recipes."""
    if recipe in _FORMATS:
        return ["--weight-format", *_FORMATS[recipe]]
    kind, _, group = recipe.partition("-g")
    size = "-1" if recipe.endswith("-channel") else group or "128"
    symmetric = ["--sym"] if kind.startswith("int4-sym") else []
    return ["--weight-format", kind.partition("-")[0], "--group-size", size, *symmetric]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Converts with both, recipe by recipe, and lets both results answer."""
    from benchmarks.weights import write_model

    with tempfile.TemporaryDirectory(prefix="phiconv-bench-", dir=options.scratch) as name:
        scratch = Path(name)
        model = (options.model or write_model(scratch / "model", options.layers, **_SMALL)).resolve()
        result: dict[str, Any] = {"load average": os.getloadavg(), "jobs": options.jobs, "skipped": {}}
        if options.peer is None:
            result["skipped"]["optimum-cli"] = "not found: pip install optimum-intel nncf, or give --peer"
        if importlib.util.find_spec("openvino_genai") is None:
            result["skipped"]["tokens per second"] = "OpenVINO GenAI is not installed"
        result |= {"steps": [], "ratios": [], "outputs": []}
        result["speeds"] = []
        for recipe in options.recipes:
            _one(recipe, model, scratch, options, result)
        return result


def _one(
    recipe: str, model: Path, scratch: Path, options: argparse.Namespace, result: dict[str, Any]
) -> None:
    """One recipe: the costs of both programs, then their outputs, then how fast these are."""
    from benchmarks.job import measure
    from benchmarks.openvino_constants import compare
    from benchmarks.openvino_speed import speeds

    ours, theirs = scratch / "ours", scratch / "theirs"
    ratio = ["--ratio", str(options.ratio)] if options.ratio is not None and "4" in recipe else []
    phi = [sys.executable, "-P", "-m", "phiconv", model, ours, "--to", "openvino", "--quant", recipe, *ratio]
    how = ["--quiet", "--match-runtime", "--jobs", str(options.jobs)]
    optimum = ["export", "openvino", "--model", model, "--task", "text-generation-with-past"]
    commands = {"phiconv": [*phi, *how]}
    if options.peer is not None:
        commands["optimum-cli"] = [options.peer, *optimum, *peer_options(recipe), *ratio, theirs]
    folders = dict(zip(commands, (ours, theirs), strict=False))
    costs = {name: measure(command) for name, command in commands.items()}
    for name, cost in costs.items():
        size = folders[name].joinpath(_MODEL).with_suffix(".bin").stat().st_size / 2**20
        result["steps"].append({"step": f"{name}, {recipe}", **asdict(cost), "MiB of weights": size})
    if theirs.exists():
        a, b = costs["phiconv"], costs["optimum-cli"]
        memory = a.anonymous / b.anonymous if a.anonymous and b.anonymous else None
        row = {"phiconv / optimum-cli": recipe, "CPU": a.cpu / b.cpu, "wall time": a.wall / b.wall}
        result["ratios"].append(row | {"memory": memory})
        result["outputs"].append({"weights": recipe, "": compare(ours / _MODEL, theirs / _MODEL)})
    if options.rounds and "tokens per second" not in result["skipped"]:
        rows = speeds(dict(reversed(folders.items())), options)
        result["speeds"] += [{"recipe": recipe, **row} for row in rows]
    for folder in folders.values():
        shutil.rmtree(folder)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", default=shutil.which("optimum-cli"), help="optimum-cli, if not on the path")
    parser.add_argument("--model", type=Path, help="a model folder; otherwise a random one is made")
    parser.add_argument("--layers", type=int, default=6, help="of the random model")
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=["int4-asym"])
    parser.add_argument("--ratio", type=float, help="of 4 bits, for both programs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads of phiconv")
    parser.add_argument("--prompt", type=int, default=256, help="tokens to read")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to answer")
    parser.add_argument("--rounds", type=int, default=5, help="answers of each; 0 for none")
    parser.add_argument("--backend", choices=("PA", "SDPA"), default="PA", help="of attention")
    parser.add_argument("--threads", type=int, default=0, help="of OpenVINO; 0 for as many as it likes")
    parser.add_argument("--scratch", type=Path, help="folder for the temporary files")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--weights", nargs=2, type=Path, help="only compare the weights of two models")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, runs, prints."""
    from benchmarks.openvino_constants import compare
    from benchmarks.printing import show

    options = parse(arguments)
    if options.weights:
        found = compare(*options.weights)
        sys.exit(found) if "DIFFER" in found else print(found)
        return
    result = run(options)
    show(result, as_json=options.json)


if __name__ == "__main__":
    # Or else `import openvino`, which means the package of this name, would find this script.
    sys.path[:] = [str(_HERE.parent), *(path for path in sys.path if Path(path).resolve() != _HERE)]
    main()
