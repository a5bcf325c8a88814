"""What a model becomes for every target and recipe, as a SHA-256 for each: to compare NumPys and processors.

    python output_hashes.py SOURCE [--every] [--imatrix X] [--effort best --calibration X] [TARGET ...]

prints a JSON object: of each target one recipe for each way of computing, or with ``--every`` all it has.
Run it twice with different NumPys, or with ``NPY_DISABLE_CPU_FEATURES``, and compare.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import phiconv
from phiconv.errors import PhiconvError
from phiconv.recipes import TARGETS, Choices

if TYPE_CHECKING:
    from collections.abc import Iterable

RECIPES = {
    "gguf": ["F16", "Q8_0", "Q5_1", "Q4_0", "Q6_K", "Q4_K_M", "Q2_K", "IQ4_NL", "IQ3_S", "TQ2_0"],
    "litert": ["wi8", "wi4b32", "f16"],
    "mlx": ["4bit", "mxfp4", "mxfp8", "nvfp4", "mixed_3_6"],
    "onnx": ["f16", "int4", "int4-asym", "int4-rtn-asym", "int4-qdq", "int8-k_quant"],
    "openvino": ["int4-asym", "int4-sym", "nf4", "mxfp4", "mxfp8"],
    "safetensors": ["bf16"],
    "compressed-tensors": ["w4a16-asym", "w8a8", "fp8-block", "nvfp4a16", "mxfp4a16", "mxfp8"],
    "gptq": ["4bit", "8bit-v2"],
    "awq": ["4bit"],
}


def hashes(
    source: Path,
    targets: Iterable[str],
    *,
    every: bool = False,
    effort: str = "exact",
    **options: Path | None,
) -> dict[str, str]:
    """A SHA-256 for each target and recipe; what refuses it where it cannot be."""
    result = {}
    for target in targets:
        families = TARGETS[target].RECIPES.families
        for name in [name for family in families for name in family.names()] if every else RECIPES[target]:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / ("x.gguf" if target == "gguf" else "x")
                more = options if target == "gguf" else options | {"imatrix": None}
                choices = Choices(effort=effort)
                try:
                    # A receipt names the release of NumPy.
                    options = {"to": target, "quant": name, "jobs": 1, "receipt": False, **more}
                    phiconv.convert(source, out, choices=choices, **options)
                    result[f"{target} {name}"] = digest(Path(folder))
                except PhiconvError as error:
                    result[f"{target} {name}"] = type(error).__name__
    return result


def digest(folder: Path) -> str:
    """Of all names and bytes in a folder."""
    state = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        state.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return state.hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("targets", nargs="*", default=list(RECIPES))
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--effort", default="exact")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--imatrix", type=Path)
    sys.stdout.write(json.dumps(hashes(**vars(parser.parse_args()))))
