"""Compares phiconv with llm-compressor's model_free_ptq: the same model, the same machine, the same run.

    python benchmarks/server.py [--model FOLDER | --layers N] [--recipes w4a16,w8a8] [--peer PYTHON]

README.md beside this script says what the numbers are. llm-compressor needs torch; ``LLM_COMPRESSOR`` in the
environment, or ``--peer``, names a Python that has it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_HERE = Path(__file__).resolve().parent

PRESETS = {
    "w4a16": "W4A16",
    "w4a16-asym": "W4A16_ASYM",
    "w8a16": "W8A16",
    "w8a8": "W8A8",
    "w4a8": "W4A8",
    "fp8-dynamic": "FP8_DYNAMIC",
    "fp8-block": "FP8_BLOCK",
    "nvfp4a16": "NVFP4A16",
    "mxfp4a16": "MXFP4A16",
    "mxfp8": "MXFP8",
}
"""What llm-compressor calls our recipes."""

_PEER = """
import sys
from llmcompressor import model_free_ptq
model, target, scheme, workers = sys.argv[1:]
ignore = ["lm_head", "model.embed_tokens", "re:.*gate$"]
model_free_ptq(model, target, scheme, ignore=ignore, max_workers=int(workers), device="cpu")
"""


def why_not(peer: str) -> str:
    """Why a Python cannot run the peer; "" if it can."""
    command = [peer, "-c", "import llmcompressor"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Converts with both, recipe by recipe."""
    from benchmarks.job import measure
    from benchmarks.mlx import different
    from benchmarks.weights import write_model

    with tempfile.TemporaryDirectory(prefix="phiconv-bench-", dir=options.scratch) as name:
        scratch = Path(name)
        model = (options.model or write_model(scratch / "model", options.layers)).resolve()
        result: dict[str, Any] = {"load average": os.getloadavg(), "jobs": options.jobs}
        steps, ratios, outputs = [], [], []
        for recipe in options.recipes:
            ours, theirs = scratch / "ours", scratch / "theirs"
            phi = [sys.executable, "-P", "-m", "phiconv", model, ours, "--to", "compressed-tensors"]
            how = ["--quant", recipe, "--quiet", "--match-runtime", "--jobs", str(options.jobs)]
            peer = [options.peer, "-c", _PEER, model, theirs, PRESETS[recipe], str(options.jobs)]
            a, b = measure([*phi, *how]), measure(peer)
            steps += [{"step": f"phiconv, {recipe}", **asdict(a)}, {"step": f"peer, {recipe}", **asdict(b)}]
            memory = a.anonymous / b.anonymous if a.anonymous and b.anonymous else None
            ratio = {"CPU": a.cpu / b.cpu, "wall time": a.wall / b.wall, "memory": memory}
            ratios.append({"phiconv / llm-compressor": recipe, **ratio})
            sizes = [sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in (ours, theirs)]
            found = {"MB": sizes[0] / 1e6, "peer's MB": sizes[1] / 1e6, "": different(ours, theirs)}
            outputs.append({"outputs": recipe, **found})
            shutil.rmtree(ours)
            shutil.rmtree(theirs)
        return result | {"steps": steps, "ratios": ratios, "outputs": outputs}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, runs, prints."""
    from benchmarks.printing import show

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a model folder; otherwise a random one is made")
    parser.add_argument("--layers", type=int, default=1, help="of the random model")
    usual = ["w4a16", "w4a16-asym", "w8a8", "fp8-dynamic", "nvfp4a16"]
    parser.add_argument("--recipes", type=lambda t: t.split(","), default=usual)
    parser.add_argument("--jobs", type=int, default=1, help="threads of phiconv, and shards of the peer")
    parser.add_argument("--peer", default=os.environ.get("LLM_COMPRESSOR", sys.executable))
    parser.add_argument("--scratch", type=Path, help="folder for the temporary files")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if reason := why_not(options.peer):
        show({"skipped": {"llm-compressor": reason}}, as_json=options.json)
        return
    show(run(options), as_json=options.json)


if __name__ == "__main__":
    sys.path[:] = [str(_HERE.parent), *(path for path in sys.path if Path(path).resolve() != _HERE)]
    main()
