#!/usr/bin/env python3
"""What recipes cost, measured: makes the table that ``phiconv choose`` shows.

    python benchmarks/qualities.py [--models FOLDER ...] [--text FILE] [--characters N] [--output FILE]

Each model is converted with every recipe of `phiconv.guide.offers` and with GGUF's other ones (but for those
that need an importance matrix), and ``phiconv evaluate`` compares the predictions with those of the
unquantized model. The table has the mean over the models of the mean divergence, and of the positions
with the same likeliest token. Small models suffer more than large ones: the table ranks recipes, and says
little about how well a large model will do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent


def recipes() -> list[tuple[str, str]]:
    """Formats and recipes: the offers, and GGUF's; not floats, nor what is for other kinds of models."""
    from phiconv.guide.offers import OFFERS
    from phiconv.recipes import gguf

    found = [(offer.format, offer.recipe) for offer in OFFERS]
    left_out = ("F32", "F16", "BF16", "TQ1_0", "TQ2_0", "MXFP4_MOE")
    more = (("gguf", name) for name in gguf.DEFAULTS if name not in left_out)
    return list(dict.fromkeys([*found, *more]))


def measured(model: Path, text: str, work: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """Mean divergence and the share of the same likeliest token, of one model."""
    import phiconv

    paths = {}
    for target, recipe in recipes():
        suffix = {"gguf": ".gguf", "litert": ".litertlm"}.get(target, "")
        out = work / f"{target}-{recipe}{suffix}"
        try:
            phiconv.convert(model, out, to=target, quant=recipe, receipt=False)
        except phiconv.UsageError as error:
            print(f"{target} {recipe}: {error}", file=sys.stderr)
            continue
        paths[target, recipe] = out
    results = phiconv.evaluate_all(list(paths.values()), text, reference=model)
    found = {}
    for key, result in zip(paths, results, strict=True):
        assert result.divergence is not None
        found[key] = (result.divergence.mean, result.divergence.same_top)
    return found


def table(models: list[Path], text: str) -> dict[str, dict[str, dict[str, float]]]:
    """By format and recipe: the means over all models."""
    each = []
    for model in models:
        with tempfile.TemporaryDirectory(prefix="phiconv-bench-") as work:
            each.append(measured(model, text, Path(work)))
    result: dict[str, dict[str, dict[str, float]]] = {}
    for target, recipe in recipes():
        values = [found[target, recipe] for found in each if (target, recipe) in found]
        if values:
            divergence, same = (statistics.fmean(column) for column in zip(*values, strict=True))
            one = {"divergence": round(divergence, 5), "same_first": round(same, 4)}
            result.setdefault(target, {})[recipe] = one
    return result


def main() -> None:
    """Measures, and writes the table."""
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != _HERE]
    fixtures = _ROOT / "fixtures"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    usual = [fixtures / "tiny-phi3", fixtures / "tiny-phi4mini"]
    parser.add_argument("--models", nargs="+", type=Path, default=usual)
    parser.add_argument("--text", type=Path, default=fixtures / "test.txt")
    parser.add_argument("--characters", type=int, default=20_000, help="of the text")
    output = _ROOT / "converter" / "phiconv" / "guide" / "qualities.json"
    parser.add_argument("--output", type=Path, default=output)
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")[: options.characters]
    found = {
        "models": [model.name for model in options.models],
        "characters": len(text),
        "recipes": table(options.models, text),
    }
    options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
