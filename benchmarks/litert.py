"""Compares phiconv with Google's tools for LiteRT: the same model, the same machine, the same run.

    python benchmarks/litert.py [--peer COMMAND] [--model FOLDER] [--recipes wi4b32,wi8,f16]

README.md beside this script says what the numbers are. What needs litert-quantizer, another converter or
LiteRT-LM is skipped, and said to be, where they are not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import site
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_HERE = Path(__file__).resolve().parent
_SMALL = {
    "hidden_size": 1536, "intermediate_size": 4096, "num_attention_heads": 24, "num_key_value_heads": 24
}  # fmt: skip
"""Of the random model: 0.54 GB in six layers, of which embedding and head are a third."""

_FLOATS = ("f16", "f32")
_QUANTIZE = """
import sys
import numpy as np
from litert_quantizer import quantizer, recipe

engine = quantizer.Quantizer(sys.argv[1])
engine.load_quantization_recipe(getattr(recipe, f"dynamic_{sys.argv[2]}_afp32")())
with np.errstate(all="ignore"):
    engine.quantize().export_model(sys.argv[3], overwrite=True)
"""


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Converts with all, recipe by recipe, and lets phiconv's results answer."""
    from benchmarks.weights import write_model

    with tempfile.TemporaryDirectory(prefix="phiconv-bench-", dir=options.scratch) as name:
        scratch = Path(name)
        model = (options.model or write_model(scratch / "model", options.layers, **_SMALL)).resolve()
        result: dict[str, Any] = {"load average": os.getloadavg(), "jobs": options.jobs, "skipped": {}}
        if importlib.util.find_spec("litert_quantizer") is None:
            result["skipped"]["litert-quantizer"] = "not installed"
        if not options.peer:
            result["skipped"]["another converter"] = "give --peer, with {model} and {out} in it"
        if importlib.util.find_spec("litert_lm") is None:
            result["skipped"]["tokens per second"] = "litert-lm-api is not installed"
        result |= {"steps": [], "speeds": [], "outputs": [_environments(options)]}
        for recipe in options.recipes:
            _one(recipe, model, scratch, options, result)
        if options.peer:
            _peer(model, scratch, options, result)
        return result


def _one(
    recipe: str, model: Path, scratch: Path, options: argparse.Namespace, result: dict[str, Any]
) -> None:
    """One recipe: what it costs, what the peer takes to quantize a float file, and how fast it answers."""
    from benchmarks.job import measure

    ours = scratch / f"{recipe}.litertlm"
    phi = [sys.executable, "-P", "-m", "phiconv", model]
    how = ["--quiet", "--force", "--match-runtime", "--jobs", str(options.jobs)]
    cost = measure([*phi, ours, "--quant", recipe, *how])
    _note(f"phiconv, {recipe}", cost, ours, result)
    if recipe not in _FLOATS and "litert-quantizer" not in result["skipped"]:
        floats, theirs = scratch / "f32.tflite", scratch / "theirs.tflite"
        if not floats.exists():
            measure([*phi, floats, "--quant", "f32", *how])
        script = [sys.executable, "-P", "-c", _QUANTIZE, floats, recipe, theirs]
        _note(f"litert-quantizer, {recipe}, of a float32 graph", measure(script), theirs, result)
    if options.rounds and "tokens per second" not in result["skipped"]:
        result["speeds"].append({"recipe": recipe, **_speed(ours, scratch, options)})


def _peer(model: Path, scratch: Path, options: argparse.Namespace, result: dict[str, Any]) -> None:
    from benchmarks.job import measure

    out = scratch / "peer"
    words = [w.replace("{model}", str(model)).replace("{out}", str(out)) for w in shlex.split(options.peer)]
    cost = measure(words)
    files = [out] if out.is_file() else list(out.rglob("*"))
    largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size, default=None)
    _note("the peer", cost, largest, result)


def _note(step: str, cost: Any, file: Path | None, result: dict[str, Any]) -> None:
    size = file.stat().st_size / 2**20 if file is not None else None
    result["steps"].append({"step": step, **asdict(cost), "MiB": size})


def _environments(options: argparse.Namespace) -> dict[str, Any]:
    """What has to be installed, in MiB."""
    folders = {"this environment": [*map(Path, site.getsitepackages())]}
    if options.peer_environment:
        folders["the peer's environment"] = [options.peer_environment]
    return {
        name: sum(f.stat().st_size for folder in some for f in folder.rglob("*") if f.is_file()) / 2**20
        for name, some in folders.items()
    }


def _speed(path: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second in LiteRT-LM, medians of the rounds; the first one only warms up."""
    import statistics

    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    started = time.perf_counter()
    backend = litert_lm.Backend.CPU(thread_count=options.threads)
    engine = litert_lm.Engine(str(path), backend, cache_dir=str(scratch), enable_benchmark=True)
    load, found = time.perf_counter() - started, []
    for _ in range(options.rounds + 1):
        session = engine.create_session(
            apply_prompt_template=False,
            sampler_config=litert_lm.SamplerConfig(top_k=1),
            max_output_tokens=options.tokens,
        )
        session.run_prefill(["a list of words, " * (options.prompt // 4)])
        session.run_decode()
        found.append(session.get_benchmark_info())
        session.close()
    engine.close()
    kinds = {"prefill tokens/s": "last_prefill_tokens_per_second"}
    kinds["decode tokens/s"] = "last_decode_tokens_per_second"
    medians = {k: statistics.median(getattr(each, name) for each in found[1:]) for k, name in kinds.items()}
    return {"load s": load, **medians}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", help="a converter's command, with {model} and {out} in it")
    parser.add_argument("--peer-environment", type=Path, help="its site-packages, to be measured")
    parser.add_argument("--model", type=Path, help="a model folder; otherwise a random one is made")
    parser.add_argument("--layers", type=int, default=6, help="of the random model")
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=["wi4b32", "wi8"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads of phiconv")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of LiteRT-LM")
    parser.add_argument("--prompt", type=int, default=128, help="about how many tokens to read")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens to answer")
    parser.add_argument("--rounds", type=int, default=3, help="answers of each; 0 for none")
    parser.add_argument("--scratch", type=Path, help="folder for the temporary files")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, runs, prints."""
    from benchmarks.printing import show

    options = parse(arguments)
    show(run(options), as_json=options.json)


if __name__ == "__main__":
    sys.path[:] = [str(_HERE.parent), *(path for path in sys.path if Path(path).resolve() != _HERE)]
    main()
