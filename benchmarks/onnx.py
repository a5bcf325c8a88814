"""Compares phiconv with the model builder of ONNX Runtime GenAI: the same model, machine and run.

    python benchmarks/onnx.py job [--model FOLDER | --layers N] [--recipe int4] [--peer PYTHON]
    python benchmarks/onnx.py weights --peer PYTHON [--model FOLDER] [--recipes int4,int8] [--target cpu]

README.md beside this script says what the numbers are. The builder needs onnxruntime-genai, torch and
transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Row = dict[str, Any]

_HERE = Path(__file__).resolve().parent
_SPEED = _HERE / "onnx_speed.py"
_OURS, _MATCHED, _THEIRS = "phiconv", "phiconv --match-runtime", "model builder"

_WIDTHS = {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
"""Half of Phi-3.5-mini's: with five layers, 240 million weights in 480 MB."""


def why_not(peer: str) -> str | None:
    """Why this interpreter cannot run the builder, in a line; None if it can."""
    find = "from importlib.util import find_spec as f; print(*(n for n in {!r} if f(n) is None))"
    names = ("onnxruntime_genai", "torch", "transformers")
    try:
        done = subprocess.run(
            [peer, "-P", "-c", find.format(names)], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{peer} does not run: {error}"
    return f"{peer} has no {done.stdout.strip()}" if done.stdout.strip() else None


def phiconv_command(model: Path, folder: Path, recipe: str, *options: str) -> list[str | Path]:
    """The command that makes phiconv convert."""
    phi = [sys.executable, "-P", "-m", "phiconv", model, folder, "--to", "onnx"]
    return [*phi, "--quant", recipe, "--quiet", *options]


# ------------------------------------------------------------------------------------------------- whole jobs


def run_job(options: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """The command ``job``: what converting takes, and how fast the results are."""
    from benchmarks.job import measure
    from benchmarks.onnx_builder import builder_command, compare

    jobs = ("--jobs", str(options.jobs))
    folders = {_OURS: scratch / "ours", _MATCHED: scratch / "matched", _THEIRS: scratch / "theirs"}
    commands = {
        _OURS: phiconv_command(model, folders[_OURS], options.recipe, *jobs),
        _MATCHED: phiconv_command(model, folders[_MATCHED], options.recipe, "--match-runtime", *jobs),
        _THEIRS: builder_command(options.peer, model, folders[_THEIRS], options.recipe),
    }
    result: dict[str, Any] = {"recipe": options.recipe, "load average": os.getloadavg()}
    if reason := why_not(options.peer):
        result["skipped"] = {_THEIRS: reason}
        del commands[_THEIRS]
    costs = {}
    for name, command in commands.items():
        costs[name] = measure(command)
    sizes = {name: sum(path.stat().st_size for path in folders[name].iterdir()) for name in commands}
    result["steps"] = [
        {"step": name, **asdict(cost), "MB written": sizes[name] / 1e6} for name, cost in costs.items()
    ]
    speeds = _speeds({name: folders[name] for name in commands}, options)
    result["speeds"] = [{"result of": name, **speed} for name, speed in speeds.items()]
    if _THEIRS in costs:
        numbers = {name: _numbers(costs[name], sizes[name], speeds.get(name, {})) for name in commands}
        result["ratios"] = [
            {"as multiples of the builder's": name}
            | {key: _ratio(value, numbers[_THEIRS][key]) for key, value in numbers[name].items()}
            for name in (_OURS, _MATCHED)
        ]
        same = str(compare(folders[_MATCHED], folders[_THEIRS]))
        result["outputs"] = [{"weights": f"{_MATCHED} and {_THEIRS}", "": same}]
    return result


def _numbers(cost: Any, size: int, speed: Mapping[str, float]) -> dict[str, float | None]:
    return {
        "wall time": cost.wall,
        "CPU": cost.cpu,
        "anonymous memory": cost.anonymous,
        "size": size,
        "prefill": speed.get("prefill tokens/s"),
        "decode": speed.get("decode tokens/s"),
    }


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def _speeds(folders: Mapping[str, Path], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What onnxruntime-genai makes of the results: of every number the best of several processes.

    They take turns, and each has the machine for itself: sessions of one process would share its threads.
    """
    numbers = ["--prompt", str(options.prompt), "--tokens", str(options.tokens)]
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.repeat):
        for name, folder in folders.items():
            command = [sys.executable, "-P", _SPEED, folder, *numbers]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{folder}: {done.stderr}")
            for key, value in json.loads(done.stdout).items():
                known = best.setdefault(name, {}).get(key)
                choose = max if key.endswith("/s") else min
                best[name][key] = value if known is None else choose(known, value)
    return best


# ---------------------------------------------------------------------------------------------------- weights


def run_weights(options: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    """The command ``weights``: whether both make the same of a model, recipe by recipe."""
    from benchmarks.job import measure
    from benchmarks.onnx_builder import builder_command, compare

    if reason := why_not(options.peer):
        return {"skipped": {_THEIRS: reason}}
    rows = []
    for recipe in options.recipes:
        ours, theirs = scratch / "ours", scratch / "theirs"
        measure(phiconv_command(model, ours, recipe, "--match-runtime", "--target", options.target))
        measure(builder_command(options.peer, model, theirs, recipe, options.target))
        rows.append({"recipe": recipe, "": str(compare(ours, theirs))})
        shutil.rmtree(ours)
        shutil.rmtree(theirs)
    return {"outputs": rows}


# ----------------------------------------------------------------------------------------------- command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    from benchmarks.onnx_builder import RECIPES

    def recipe(name: str) -> str:
        if name.partition("-g")[0] not in RECIPES:
            raise argparse.ArgumentTypeError(f"no recipe of both: {name}; one of {', '.join(RECIPES)}")
        return name

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    job = commands.add_parser("job", help="what a conversion takes, and how fast its result is")
    job.set_defaults(run=run_job)
    job.add_argument("--recipe", type=recipe, default="int4")
    job.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads of phiconv")
    job.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    job.add_argument("--tokens", type=int, default=64, help="tokens to generate")
    job.add_argument("--repeat", type=int, default=3, help="best of how many, for tokens per second")
    weights = commands.add_parser("weights", help="whether both make the same bytes")
    weights.set_defaults(run=run_weights)
    weights.add_argument("--recipes", type=lambda t: [recipe(n) for n in t.split(",")], default=["int4"])
    weights.add_argument("--target", default="cpu", choices=("cpu", "cuda", "dml", "webgpu"))
    for command in (job, weights):
        command.add_argument("--model", type=Path, help="a model folder; otherwise a random one is made")
        command.add_argument("--layers", type=int, default=5, help="of the random model")
        command.add_argument("--peer", default=sys.executable, help="a Python that has the builder")
        command.add_argument("--scratch", type=Path, help="folder for the temporary files")
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and prints what it found."""
    from benchmarks.printing import show
    from benchmarks.weights import write_model

    options = parse(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # for the builder, which would ask for a newer file
    with tempfile.TemporaryDirectory(prefix="phiconv-bench-", dir=options.scratch) as name:
        scratch = Path(name)
        model = options.model or write_model(scratch / "model", options.layers, **_WIDTHS)
        result = options.run(options, model.resolve(), scratch)
    show(result, as_json=options.json)


if __name__ == "__main__":
    # Or else `import onnx`, which means the package of this name, would find this script.
    sys.path[:] = [str(_HERE.parent), *(path for path in sys.path if Path(path).resolve() != _HERE)]
    main()
