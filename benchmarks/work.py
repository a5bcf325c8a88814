#!/usr/bin/env python3
"""What else phiconv does than quantize: opening, planning, comparing, requantizing, generating, evaluating.

    python benchmarks/work.py --layers 2
    python benchmarks/work.py --model Phi-4-mini-instruct --against older/converter:older/formats

Each step is a command of its own, so the start of Python counts. `--against` names the source roots of
another version, which does the same steps right after.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.job import measure  # noqa: E402 - the folder is a package only from here on
from benchmarks.printing import show  # noqa: E402
from benchmarks.weights import write_model  # noqa: E402

_PROMPT = "The function returns a list of"
_TOKENS = (64, 512)


def main(arguments: list[str] | None = None) -> None:
    """Measures all steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder; by default a random model")
    parser.add_argument("--layers", type=int, default=1, help="of the random model")
    parser.add_argument("--against", help="source roots of another version, as in PYTHONPATH")
    parser.add_argument("--tokens", type=int, action="append", help="to generate; several times for several")
    parser.add_argument("--scratch", type=Path, help="where temporary files go")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="phiconv-bench-", dir=options.scratch) as name:
        scratch = Path(name)
        model = (options.model or write_model(scratch / "model", options.layers)).resolve()
        show(_measured(options, model, scratch), as_json=options.json)


def _measured(options: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    versions: dict[str, str | None] = {"": None} | ({" (other)": options.against} if options.against else {})
    rows = []
    for step, command in _steps(model, scratch, options.tokens or _TOKENS).items():
        for version, roots in versions.items():
            cost = measure([*_program(roots), *command])
            rows.append({"step": step + version, **asdict(cost)})
    return {"load average": os.getloadavg(), "steps": rows}


def _program(roots: str | None) -> list[str | Path]:
    if roots is None:
        return [sys.executable, "-P", "-m", "phiconv"]
    return ["env", f"PYTHONPATH={roots}", sys.executable, "-P", "-m", "phiconv"]


def _steps(model: Path, scratch: Path, tokens: list[int] | tuple[int, ...]) -> dict[str, list[str | Path]]:
    """The commands, in an order in which each finds what it needs."""
    quantized, text = scratch / "q4.gguf", ROOT / "fixtures" / "test.txt"
    short = scratch / "short.txt"
    short.write_text(text.read_text(encoding="utf-8")[:8000], encoding="utf-8")
    quiet: list[str | Path] = ["--quiet", "--force"]
    return {
        "inspect": ["inspect", model],
        "plan, GGUF": ["plan", model, scratch / "x.gguf", "--quant", "Q4_K_M"],
        "plan, OpenVINO": ["plan", model, scratch / "x", "--to", "openvino", "--q4"],
        "to Q4_K_M": [model, quantized, "--quant", "Q4_K_M", *quiet],
        "compare": ["compare", model, quantized],
        "Q4_K_M to F16": [quantized, scratch / "f16.gguf", "--quant", "f16", *quiet],
        "evaluate": ["evaluate", model, "--text", short, "--context", "256", "--quiet"],
        **{
            f"generate {count}": ["generate", model, "--prompt", _PROMPT, "--count", str(count)]
            for count in tokens
        },
    }


if __name__ == "__main__":
    main()
