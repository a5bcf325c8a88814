"""What a size to aim at gives: divergence at the size of a recipe, all with the codes of ``--effort best``.

    python benchmarks/mixtures.py [--models FOLDER ...] [--text FILE] [--characters N]

Prints a table in Markdown: each recipe, the mixture that was chosen for its size by a measurement, and the
one that was chosen without. The calibration is made on the texts that come with phiconv; the text that judges
is of other documents.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiconv.api import Result

_HERE = Path(__file__).resolve().parent
_FIXTURES = _HERE.parent / "fixtures"

RECIPES = {
    "gguf": ("Q3_K_M", "Q4_K_M", "Q6_K"),
    "mlx": ("4bit",),
    "onnx": ("int4",),
    "openvino": ("int4-asym",),
}


def converted(model: Path, calibration: Path, out: Path, target: str, recipe: str) -> list[Result]:
    """The recipe, the measured mixture, and the one without a measurement."""
    import phiconv
    from phiconv import Choices
    from phiconv.recipes import override

    suffix = ".gguf" if target == "gguf" else ""
    best = {"to": target, "calibration": calibration}
    own = phiconv.convert(model, f"{out}-own{suffix}", quant=recipe, choices=Choices(effort="best"), **best)
    sized = Choices(effort="best", target_size=own.size)
    mixed = phiconv.convert(model, f"{out}-mix{suffix}", choices=sized, **best)
    free = phiconv.plan(model, f"{out}-free{suffix}", to=target, choices=Choices(target_size=own.size))
    types = tuple(override(f"{pattern}={name}") for pattern, name in free.mixture)
    again = Choices(effort="best", tensor_types=types)
    return [
        own,
        mixed,
        phiconv.convert(model, f"{out}-free{suffix}", quant=free.recipe, choices=again, **best),
    ]


def measure(model: Path, text: str, work: Path) -> list[str]:
    """The rows of one model."""
    import phiconv

    calibration = phiconv.calibrate(model, None, work / "calibration", sensitivity=True)
    rows = []
    for target, recipes in RECIPES.items():
        for recipe in recipes:
            found = converted(model, calibration, work / f"{target}-{recipe}", target, recipe)
            places = [f.files[0] if target == "gguf" else f.plan.folder for f in found]
            own, mixed, free = (
                each.divergence.mean
                for each in phiconv.evaluate_all(places, text, reference=model)
                if each.divergence is not None
            )
            figures = f"{own:.5f} | {mixed:.5f} | {mixed / own:.2f} | {free:.5f} | {free / own:.2f}"
            rows.append(f"| {model.name} | {target} {recipe} | {found[0].size / 1e6:.2f} | {figures} |")
    return rows


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
    parser.add_argument("--characters", type=int, default=10_000, help="how much of the text")
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")[: options.characters]
    print("| model | recipe | MB | recipe's divergence | measured | ratio | without | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for model in options.models:
        with tempfile.TemporaryDirectory() as work:
            for row in measure(model, text, Path(work)):
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
