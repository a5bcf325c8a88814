"""The weights of two OpenVINO models side by side, byte for byte."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_PREFIX = re.compile(r"^self\.")
_TRACED = re.compile(r"\._openvino_orig_weight(?=$|/)")
_WEIGHT = re.compile(r"\.weight(/zero_point|/scale)?$")
_VECTOR = re.compile(r"^1(, 1)*, \d+$")


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of an IR, as its XML says, and its bytes."""

    type: str
    shape: str
    data: NDArray[np.uint8]


def constants(path: Path) -> dict[str, Constant]:
    """Constants that have a name of a checkpoint, by that name.

    Args:
        path: The .xml; the .bin must stand beside it.
    """
    content = np.memmap(path.with_suffix(".bin"), np.uint8, "r")
    found = {}
    for layer in ET.parse(path).getroot().iterfind("layers/layer[@type='Const']"):
        data, name = layer.find("data"), checkpoint_name(layer.get("name", ""))
        assert data is not None
        start, size = (int(data.get(key, "")) for key in ("offset", "size"))
        found[name] = Constant(
            data.get("element_type", ""), data.get("shape", ""), content[start : start + size]
        )
    return found


def checkpoint_name(name: str) -> str:
    """What a checkpoint calls a weight: a traced model has its own words around that."""
    return _TRACED.sub(".weight", _PREFIX.sub("", name))


def compare(ours: Path, theirs: Path) -> str:
    """In a few words, how the weights of two models differ: codes, zero points, scales, norms.

    A traced model gives its norms numbers for names, so they are compared as a heap of vectors.
    """
    second = constants(theirs)
    first = {name: constant for name, constant in constants(ours).items() if "." in name}  # no numbers
    matrices = {name for name, constant in first.items() if not _is_vector(constant)}
    theirs_only = {n for n, c in second.items() if _WEIGHT.search(n) and not _is_vector(c)} - first.keys()
    missing = sorted((matrices - second.keys()) | theirs_only)
    if missing:
        return f"DIFFER: {len(missing)} names, {missing[0]} the first"
    wrong, size = [], 0
    for name in sorted(matrices):
        a, b = first[name], second[name]
        size += a.data.size
        if (a.type, a.shape) != (b.type, b.shape) or not np.array_equal(a.data, b.data):
            wrong.append(f"{name} ({_difference(a, b)})")
    lost = _vectors(first) - _vectors(second)
    wrong += ["norms"] if lost else []
    if wrong:
        return f"DIFFER: {len(wrong)} of {len(matrices)}, {wrong[0]}"
    return f"{len(matrices)} constants, {size} bytes, equal byte for byte"


def _difference(a: Constant, b: Constant) -> str:
    if (a.type, a.shape) != (b.type, b.shape):
        return f"{a.type} [{a.shape}], {b.type} [{b.shape}]"
    return f"{np.count_nonzero(a.data != b.data)} bytes of {a.data.size}"


def _is_vector(constant: Constant) -> bool:
    return _VECTOR.match(constant.shape) is not None


def _vectors(found: dict[str, Constant]) -> Counter[bytes]:
    """Norms and biases, all of them float vectors for all tokens."""
    return Counter(c.data.tobytes() for c in found.values() if _is_vector(c) and c.type == "f32")
