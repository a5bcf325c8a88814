"""Ranges of activations as a small file.

    {"format": "phiconv ranges", "version": 1, "model": {"name": ..., "architecture": ..., "shapes": ...,
     "norms": ...}, "texts": ["book.txt"], "tokens": 8192,
     "ranges": {"layers.0.attn_q.weight": [[-1.5, 2.0], [-9.25, 8.0]], ...}}

Of each matrix that is the smallest and largest number that went into it, and that came out.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from phiconv.errors import MalformedFileError
from phiconv.ir.model import Role
from phiconv.ir.moments import ModelIdentity
from phiconv.ir.ranges import MatrixRanges, Range, Ranges
from phiconv_formats.shared.output import OutputFile
from phiconv_formats.shared.strict_json import load_json_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["RangesFile", "ranges_file", "read_ranges"]

_FORMAT, _VERSION = "phiconv ranges", 1
_LIMIT = 16 << 20
_NAME = re.compile(r"layers\.([0-9]{1,5})\.(\w+)\.weight")


@dataclass(frozen=True, slots=True)
class RangesFile:
    """What is in such a file.

    Attributes:
        path: The file.
        model: What was measured.
        ranges: The ranges.
    """

    path: Path
    model: ModelIdentity
    ranges: Ranges


def ranges_file(
    file_name: str, ranges: Ranges, model: ModelIdentity, *, texts: Sequence[str], tokens: int
) -> OutputFile:
    """Lays the file out.

    Args:
        file_name: Its name.
        ranges: What was measured.
        model: Of which model.
        texts: On which texts.
        tokens: How many of their tokens.
    """
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": asdict(model),
        "texts": [*texts],
        "tokens": tokens,
        "ranges": {str(role): [[*each] for each in found] for role, found in ranges.matrices.items()},
    }
    data = json.dumps(value, indent=1).encode() + b"\n"
    return OutputFile(file_name, len(data), ((0, data),))


def read_ranges(path: Path) -> RangesFile:
    """Reads such a file.

    Raises:
        InputError: It cannot be read, or is none.
    """
    value = load_json_object(path, limit=_LIMIT)
    if (value.get("format"), value.get("version")) != (_FORMAT, _VERSION):
        raise MalformedFileError(
            "no file of ranges as this version of phiconv writes it",
            path=path,
            hint="make one: phiconv calibrate MODEL -o ranges.json",
        )
    keys = [field.name for field in fields(ModelIdentity)]
    model, ranges = value.get("model"), value.get("ranges")
    if not isinstance(model, dict) or not all(isinstance(model.get(key), str) for key in keys):
        raise MalformedFileError("does not say which model was measured", path=path, at="key model")
    if not isinstance(ranges, dict):
        raise MalformedFileError("has no ranges", path=path, at="key ranges")
    found = {}
    for name, pair in ranges.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise MalformedFileError("is the name of no matrix", path=path, at=f"key ranges.{name}")
        found[Role(match[2], int(match[1]))] = _matrix(pair, path, name)
    return RangesFile(path, ModelIdentity(*(model[key] for key in keys)), Ranges(found))


def _matrix(pair: Any, path: Path, name: str) -> MatrixRanges:
    ranges = [_range(each) for each in pair] if isinstance(pair, list) and len(pair) == 2 else [None]
    first, second = (*ranges, None)[:2]
    if first is None or second is None:
        raise MalformedFileError(
            "must be two pairs of finite numbers, the smaller one first", path=path, at=f"key ranges.{name}"
        )
    return MatrixRanges(first, second)


def _range(value: Any) -> Range | None:
    numbers = value if isinstance(value, list) and len(value) == 2 else []
    if len(numbers) != 2 or not all(type(n) in {int, float} and math.isfinite(n) for n in numbers):
        return None
    return Range(float(numbers[0]), float(numbers[1])) if numbers[0] <= numbers[1] else None
