"""The weights of two OpenVINO models side by side, byte for byte."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_TRACED_NAMES = (
    (r"_compressed$", ""),
    (r"^(self|__module)\.", ""),
    (r"\._openvino_orig_(weight|bias)", r".\1"),
    (r"\.experts/prim::ListUnpack/VariadicSplit\.0", ".experts.gate_proj.weight"),
    (r"\.experts/prim::ListUnpack/VariadicSplit\.1", ".experts.up_proj.weight"),
    (r"\.experts\.down_proj(?!\.)", ".experts.down_proj.weight"),
)
"""What tracing makes of the names of a checkpoint, and what it was."""

_NAMED = re.compile(r"^(model\..*|lm_head)\.(weight|bias)(/zero_point|/scale)?$")
_FLOATS = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of an IR: its element type, its shape without axes of one, its bytes."""

    type: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    @property
    def is_vector(self) -> bool:
        """Whether it is a norm or a bias: floats, the same for all tokens."""
        return len(self.shape) == 1 and self.type in _FLOATS

    def floats(self) -> NDArray[np.float32]:
        """The numbers of a vector."""
        values = self.data.view(_FLOATS[self.type])
        if self.type == "bf16":
            return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values.astype(np.float32)


def constants(path: Path) -> dict[str, Constant]:
    """The constants of an IR by their names in a checkpoint.

    Args:
        path: The .xml; the .bin must stand beside it.
    """
    content = np.memmap(path.with_suffix(".bin"), np.uint8, "r")
    found = {}
    for layer in ET.parse(path).getroot().iterfind("layers/layer[@type='Const']"):  # noqa: S314 - our own files
        data, name = layer.find("data"), layer.get("name", "")
        assert data is not None
        for traced, original in _TRACED_NAMES:
            name = re.sub(traced, original, name)
        shape = tuple(int(n) for n in data.get("shape", "").split(",") if n.strip() not in ("", "1"))
        start, size = (int(data.get(key, "")) for key in ("offset", "size"))
        found[name] = Constant(data.get("element_type", ""), shape, content[start : start + size])
    return found


def compare(ours: Path, theirs: Path) -> str:
    """In a few words, how the weights of two models differ: codes, zero points, scales, norms and biases."""
    first, second = constants(ours), constants(theirs)
    a, b = (
        {
            name: constant
            for name, constant in found.items()
            if _NAMED.match(name) and not _is_vector(name, constant)
        }
        for found in (first, second)
    )
    if a.keys() != b.keys():
        return f"DIFFER: {len(a.keys() ^ b.keys())} names, {min(a.keys() ^ b.keys())} the first"
    wrong = [f"{name} ({what})" for name in a if (what := _difference(a[name], b[name]))]
    if wrong:
        return f"DIFFER: {len(wrong)} of {len(a)}, {wrong[0]} the first"
    size = sum(constant.data.size for constant in a.values())
    return f"{len(a)} constants, {size} bytes, equal byte for byte; {_vectors(first, second)}"


def _is_vector(name: str, constant: Constant) -> bool:
    return constant.is_vector and not name.endswith("/scale")


def _difference(a: Constant, b: Constant) -> str:
    if (a.type, a.shape) != (b.type, b.shape):
        return f"{a.type} {a.shape}, {b.type} {b.shape}"
    different = np.count_nonzero(a.data != b.data)
    return f"{different} bytes of {a.data.size}" if different else ""


def _vectors(ours: dict[str, Constant], theirs: dict[str, Constant]) -> str:
    """Norms and biases, whatever they are called: tracing gives them numbers for names."""
    second = [c for c in theirs.values() if c.is_vector]
    exact = {c.floats().tobytes() for c in second}
    halves = {c.floats().astype(np.float16).tobytes() for c in second if c.type == "f16"}
    first = [c.floats() for n, c in ours.items() if _NAMED.match(n) and _is_vector(n, c)]
    rounded = [v for v in first if v.tobytes() not in exact]
    if any(v.astype(np.float16).tobytes() not in halves for v in rounded):
        return "norms or biases DIFFER"
    return f"{len(first)} norms and biases, equal" + (" as float16" if rounded else "")
