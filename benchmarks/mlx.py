"""Compares phiconv with mlx_lm.convert: the same model, the same machine, the same run.

    python benchmarks/mlx.py [--model FOLDER | --layers N] [--recipes 4bit,8bit,mxfp4] [--jobs N]

README.md beside this script says what the numbers are. mlx-lm must be installed.
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
_MODES = ("mxfp4", "mxfp8", "nvfp4")
_DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}


def peer_options(recipe: str) -> list[str]:
    """What mlx_lm.convert takes for one of our recipes."""
    if recipe in _DTYPES:
        return ["--dtype", _DTYPES[recipe]]
    if recipe in _MODES:
        return ["-q", "--q-mode", recipe]
    name, _, group = recipe.partition("-g")
    size = ["--q-group-size", group or "64"]
    if name.startswith("mixed"):
        return ["-q", "--quant-predicate", name, *size]
    return ["-q", "--q-bits", name.removesuffix("bit"), *size]


def different(first: Path, second: Path) -> str:
    """Compares two MLX folders tensor by tensor."""
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, Path]:
        found = {}
        for path in folder.glob("model*.safetensors"):
            with safe_open(path, "np") as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    ours, theirs = tensors(first), tensors(second)
    if ours.keys() != theirs.keys():
        return f"DIFFER: {len(ours.keys() ^ theirs.keys())} names"
    from phiconv_formats.shared.safetensors import open_safetensors

    archives = {path: open_safetensors(path).tensors for path in {*ours.values(), *theirs.values()}}
    wrong = 0
    for name in ours:
        a, b = archives[ours[name]][name], archives[theirs[name]][name]
        same = (a.shape, a.encoding) == (b.shape, b.encoding)
        for start in range(0, a.rows, 4096) if same else ():
            stop = min(start + 4096, a.rows)
            same = same and a.read(start, stop).tobytes() == b.read(start, stop).tobytes()
        wrong += not same
    return f"DIFFER: {wrong} tensors" if wrong else f"{len(ours)} tensors, equal byte for byte"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Converts with both, recipe by recipe."""
    from benchmarks.job import measure
    from benchmarks.weights import write_model

    with tempfile.TemporaryDirectory(prefix="phiconv-bench-", dir=options.scratch) as name:
        scratch = Path(name)
        model = (options.model or write_model(scratch / "model", options.layers)).resolve()
        result: dict[str, Any] = {"load average": os.getloadavg(), "jobs": options.jobs}
        steps, ratios, outputs = [], [], []
        for recipe in options.recipes:
            ours, theirs = scratch / "ours", scratch / "theirs"
            phi = [sys.executable, "-P", "-m", "phiconv", model, ours, "--to", "mlx", "--quant", recipe]
            how = ["--quiet", "--match-runtime", "--jobs", str(options.jobs)]
            mlx = [sys.executable, "-P", "-m", "mlx_lm", "convert", "--hf-path", model, "--mlx-path", theirs]
            a, b = measure([*phi, *how]), measure([*mlx, *peer_options(recipe)])
            steps += [{"step": f"phiconv, {recipe}", **asdict(a)}, {"step": f"mlx-lm, {recipe}", **asdict(b)}]
            memory = a.anonymous / b.anonymous if a.anonymous and b.anonymous else None
            ratios.append(
                {
                    "phiconv / mlx-lm": recipe,
                    "CPU": a.cpu / b.cpu,
                    "wall time": a.wall / b.wall,
                    "memory": memory,
                }
            )
            outputs.append({"outputs": recipe, "": different(ours, theirs)})
            shutil.rmtree(ours)
            shutil.rmtree(theirs)
        return result | {"steps": steps, "ratios": ratios, "outputs": outputs}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, runs, prints."""
    from benchmarks.printing import show

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a model folder; otherwise a random one is made")
    parser.add_argument("--layers", type=int, default=1, help="of the random model")
    parser.add_argument("--recipes", type=lambda t: t.split(","), default=["4bit", "8bit", "mxfp4", "nvfp4"])
    parser.add_argument("--jobs", type=int, default=1, help="threads of phiconv; mlx has one on a processor")
    parser.add_argument("--scratch", type=Path, help="folder for the temporary files")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("mlx_lm") is None:
        sys.exit("mlx-lm is not installed: pip install 'mlx-lm[cpu]'")
    result = run(options)
    show(result, as_json=options.json)


if __name__ == "__main__":
    # Or else `import mlx`, which means the package of this name, would find this script.
    sys.path[:] = [str(_HERE.parent), *(path for path in sys.path if Path(path).resolve() != _HERE)]
    main()
