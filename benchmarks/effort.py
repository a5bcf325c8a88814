"""What ``--effort best`` gives: divergence from the unquantized model, at the size of the usual codes.

    python benchmarks/effort.py [--models FOLDER ...] [--text FILE] [--characters N]

Prints a table in Markdown: each recipe with the runtime's own codes, with an importance matrix where the
format takes one, and with the best codes. The calibration is made on the texts that come with phiconv, and
is not in the processor time; the text that judges is of other documents.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv.api import Evaluation

_HERE = Path(__file__).resolve().parent
_FIXTURES = _HERE.parent / "fixtures"

RECIPES = {
    "gguf": ("Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K", "Q6_K", "IQ4_XS"),
    "mlx": ("4bit", "3bit"),
    "onnx": ("int4", "int4-asym"),
    "openvino": ("int4-sym", "int4-asym", "nf4"),
}


def variants(target: str, calibration: Path) -> dict[str, dict[str, object]]:
    """How each recipe is quantized, by the name of the column."""
    from phiconv import Choices

    found: dict[str, dict[str, object]] = {"own": {}}
    if target == "gguf":
        found["imatrix"] = {"imatrix": calibration / "imatrix.gguf"}
    found["best"] = {"choices": Choices(effort="best"), "calibration": calibration}
    return found


def measure(model: Path, text: str, work: Path) -> list[str]:
    """The rows of one model."""
    import phiconv

    calibration = phiconv.calibrate(model, None, work / "calibration")
    rows, paths, sizes, seconds = [], [], [], []
    for target, recipes in RECIPES.items():
        for recipe in recipes:
            for name, options in variants(target, calibration).items():
                out = work / f"{target}-{recipe}-{name}{'.gguf' if target == 'gguf' else ''}"
                before = cpu()
                result = phiconv.convert(model, out, to=target, quant=recipe, jobs=1, **options)
                seconds.append(cpu() - before)
                sizes.append(result.size)
                paths.append(out)
                rows.append((target, recipe, name))
    found = phiconv.evaluate_all(paths, text, reference=model)
    own = {row[:2]: each for row, each in zip(rows, found, strict=True) if row[2] == "own"}
    return [
        line(model.name, row, each, own[row[:2]], size, spent)
        for row, each, size, spent in zip(rows, found, sizes, seconds, strict=True)
    ]


def line(
    model: str, row: tuple[str, str, str], each: Evaluation, own: Evaluation, size: int, seconds: float
) -> str:
    """A row of the table."""
    one, other = each.divergence, own.divergence
    assert one is not None
    assert other is not None
    figures = (
        f"{one.mean:.5f} | {one.mean / other.mean:.2f} | {one.percentile_999:.3f} | {100 * one.same_top:.1f}"
    )
    return f"| {model} | {row[0]} {row[1]} | {row[2]} | {figures} | {size / 1e6:.2f} | {seconds:.1f} |"


def cpu() -> float:
    """Processor seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """The command."""
    # A script beside this one is called gguf, too.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != _HERE]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = [_FIXTURES / "tiny-phi3", _FIXTURES / "tiny-phi4mini"]
    parser.add_argument("--models", type=Path, nargs="+", default=models)
    parser.add_argument("--text", type=Path, default=_FIXTURES / "test.txt")
    parser.add_argument("--characters", type=int, default=60_000, help="how much of the text")
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")[: options.characters]
    print("| model | recipe | codes | divergence | ratio | 99.9 % | same token, % | MB | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model in options.models:
        with tempfile.TemporaryDirectory() as work:
            for row in measure(model, text, Path(work)):
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
