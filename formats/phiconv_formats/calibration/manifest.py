"""``calibration.json``: which model and texts were measured, and which array is what.

Files are not named in it: their names follow from what they hold. Nor can an array have a shape of its own:
it follows from the columns of the matrix and the number of tokens.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from phiconv.brief import Brief
from phiconv.errors import MalformedFileError, UnsupportedModelError
from phiconv.ir.moments import ModelIdentity
from phiconv_formats.calibration.arrays import ArrayFile
from phiconv_formats.shared.strict_json import load_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from phiconv_formats.calibration.arrays import ArrayType

__all__ = [
    "IMATRIX",
    "MANIFEST",
    "PARTS",
    "InputEntry",
    "Manifest",
    "PartEntry",
    "PartName",
    "SensitivityEntry",
    "TextEntry",
    "arrays_of_part",
    "input_from_json",
    "input_to_json",
    "manifest_text",
    "read_manifest",
    "squares_of",
    "windows_of",
]

MANIFEST, IMATRIX = "calibration.json", "imatrix.gguf"
_FORMAT, _VERSION = "phiconv calibration", 1
_LIMIT = 64 << 20
_MOST = 1 << 31  # tokens, columns or experts; far beyond any model, and shapes stay small integers

PartName: TypeAlias = Literal["fit", "check"]
PARTS: tuple[PartName, ...] = ("fit", "check")


@dataclass(frozen=True, slots=True, repr=False)
class TextEntry(Brief):
    """A text that was read.

    Attributes:
        name: As it was given.
        sha256: Of its UTF-8 bytes, or of its token ids as 64-bit integers where it was given so.
    """

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, repr=False)
class PartEntry(Brief):
    """A part of what went into some matrices.

    Attributes:
        tokens: How many, for each matrix of the stack; one number for no stack.
        sha256: Of each array, by its kind: either ``moments``, or ``inputs`` and ``scales`` and, of a stack,
            ``experts``: the matrix that each row went into.
    """

    tokens: tuple[int, ...]
    sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True, repr=False)
class InputEntry(Brief):
    """What went into some matrices.

    Attributes:
        layer: None for the output matrix.
        roles: Names of the matrices, the part of their roles that is no layer.
        columns: Of each.
        stacked: They are stacks of matrices.
        squares: SHA-256 of the array of sums of squares.
        parts: By `PARTS`.
    """

    layer: int | None
    roles: tuple[str, ...]
    columns: int
    stacked: bool
    squares: str
    parts: Mapping[PartName, PartEntry]

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return self.roles[0] if self.layer is None else f"{self.layer:03d}.{self.roles[0]}"


@dataclass(frozen=True, slots=True, repr=False)
class SensitivityEntry(Brief):
    """What rounding one matrix coarsely does to the predictions.

    Attributes:
        layer: None for the embedding and the output matrix.
        role: The name of the matrix.
        divergence: Mean Kullback-Leibler divergence from the model as it is, in nats.
    """

    layer: int | None
    role: str
    divergence: float


@dataclass(frozen=True, slots=True, repr=False)
class Manifest(Brief):
    """All of ``calibration.json``.

    Attributes:
        model: Which model it is.
        context: Tokens of a window.
        bos: What replaced the first token of each window; None for nothing.
        tokens: How many, by `PARTS`.
        texts: Where they are from.
        imatrix: SHA-256 of the importance matrix.
        inputs: What was measured.
        windows: SHA-256 of the array of tokens that were computed; empty where they were not kept.
        sensitivities: What rounding one matrix did to the predictions; none where that was not tried.
    """

    model: ModelIdentity
    context: int
    bos: int | None
    tokens: Mapping[PartName, int]
    texts: tuple[TextEntry, ...]
    imatrix: str
    inputs: tuple[InputEntry, ...]
    windows: str = ""
    sensitivities: tuple[SensitivityEntry, ...] = ()


def arrays_of_part(
    stem: str, part: PartName, columns: int, tokens: tuple[int, ...], *, moments: bool, stacked: bool
) -> dict[str, ArrayFile]:
    """The arrays of a part by kind, without their hashes."""
    rows, matrices = sum(tokens), (len(tokens),) if stacked else ()
    shapes: dict[str, tuple[ArrayType, tuple[int, ...]]]
    if moments:
        shapes = {"moments": ("float32", (*matrices, columns, columns))}
    else:
        shapes = {"inputs": ("float16", (rows, columns)), "scales": ("float32", (rows,))}
        if stacked:
            shapes["experts"] = ("uint16", (rows,))
    return {
        kind: ArrayFile(f"{stem}.{part}.{kind}.npy", type_, shape) for kind, (type_, shape) in shapes.items()
    }


def windows_of(context: int, tokens: Mapping[PartName, int], sha256: str = "") -> ArrayFile:
    """The array of the tokens that were computed: the windows of one part after those of the other."""
    return ArrayFile("windows.npy", "uint32", (sum(tokens.values()) // context, context), sha256)


def squares_of(stem: str, columns: int, matrices: int, sha256: str = "") -> ArrayFile:
    """The array of sums of squares."""
    return ArrayFile(f"{stem}.squares.npy", "float64", (matrices, columns), sha256)


def input_to_json(entry: InputEntry) -> dict[str, Any]:
    """An entry as it stands in the file."""
    parts = {name: {"tokens": [*p.tokens], "sha256": dict(p.sha256)} for name, p in entry.parts.items()}
    return asdict(entry) | {"roles": [*entry.roles], "parts": parts}


def manifest_text(manifest: Manifest) -> str:
    """The file's text: the same for the same measurement, wherever and whenever it was made."""
    head = {"format": _FORMAT, "version": _VERSION, **asdict(manifest)}
    return json.dumps(head | {"inputs": [input_to_json(e) for e in manifest.inputs]}, indent=1) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Reads the file, and checks all that can be checked without the arrays.

    Raises:
        MissingFileError: There is none.
        MalformedFileError: It is no such file, or a value in it cannot be.
        UnsupportedModelError: A newer version made it.
    """
    values = {"sensitivities": [], "windows": ""} | load_json_object(path, limit=_LIMIT)
    take = _Taker(path)
    if values.get("format") != _FORMAT:
        take.fail("is no calibration of phiconv", "format")
    if values.get("version") != _VERSION:
        raise UnsupportedModelError(
            "made by another version of phiconv", path=path, hint="make the calibration again"
        )
    model = {"adapters": ""} | take.object(values, "model")
    names = ("name", "architecture", "shapes", "norms", "adapters")
    tokens = take.object(values, "tokens")
    inputs = tuple(input_from_json(each, path) for each in take.array(values, "inputs"))
    if len({(e.layer, role) for e in inputs for role in e.roles}) != sum(len(e.roles) for e in inputs):
        take.fail("a matrix is there twice", "inputs")
    totals = {part: take.integer(tokens, part) for part in PARTS}
    for entry in inputs:
        sums = [(sum(entry.parts[part].tokens), totals[part]) for part in PARTS]
        # A token goes into as many experts as any other one.
        if any(found % max(total, 1) or (found != total and not entry.stacked) for found, total in sums):
            take.fail(f"{entry.stem} has other tokens than the whole", "inputs")
    return Manifest(
        ModelIdentity(*(take.text(model, name) for name in names)),
        take.integer(values, "context", least=1),
        None if values.get("bos") is None else take.integer(values, "bos"),
        totals,
        tuple(
            TextEntry(take.text(each, "name"), take.hash(each, "sha256"))
            for each in take.array(values, "texts")
        ),
        take.hash(values, "imatrix"),
        inputs,
        take.hash(values, "windows") if values["windows"] else "",
        tuple(_sensitivity(take, each) for each in take.array(values, "sensitivities")),
    )


def input_from_json(value: Any, path: Path) -> InputEntry:
    """The inverse of `input_to_json`.

    Raises:
        MalformedFileError: It cannot be one.
    """
    take = _Taker(path)
    layer = None if take.mapping(value).get("layer") is None else take.integer(value, "layer")
    roles = take.array(value, "roles")
    if not roles or not all(isinstance(r, str) and re.fullmatch("[a-z][a-z_]{0,30}", r) for r in roles):
        take.fail("names of matrices are expected", "roles")
    stacked = value.get("stacked")
    if not isinstance(stacked, bool):
        take.fail("true or false is expected", "stacked")
    parts = take.object(value, "parts")
    found = {name: _part(take, take.object(parts, name), stacked=stacked) for name in PARTS}
    if len({len(part.tokens) for part in found.values()}) > 1:
        take.fail("the parts have different numbers of experts", "parts")
    columns = take.integer(value, "columns", least=1)
    return InputEntry(layer, tuple(roles), columns, stacked, take.hash(value, "squares"), found)


def _sensitivity(take: _Taker, value: Any) -> SensitivityEntry:
    layer = (
        None if take.mapping(value, "sensitivities").get("layer") is None else take.integer(value, "layer")
    )
    return SensitivityEntry(layer, take.text(value, "role"), take.number(value, "divergence"))


def _part(take: _Taker, value: dict[str, Any], *, stacked: bool) -> PartEntry:
    tokens = take.array(value, "tokens")
    for count in tokens:
        take.integer({"tokens": count}, "tokens")
    if not tokens or len(tokens) > (1 << 16 if stacked else 1):
        take.fail("one number for each matrix is expected", "tokens")
    hashes = take.object(value, "sha256")
    inputs = {"inputs", "scales", *(["experts"] if stacked else [])}
    if {*hashes} not in ({"moments"}, inputs):
        take.fail("unknown arrays, or some are missing", "sha256")
    return PartEntry(tuple(tokens), {kind: take.hash(hashes, kind) for kind in hashes})


class _Taker:
    """Takes values out of JSON, and says what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, message: str, key: str) -> None:
        raise MalformedFileError(message, path=self.path, at=f"key {key}", hint="make the calibration again")

    def mapping(self, value: Any, key: str = "inputs") -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail("an object is expected", key)
        result: dict[str, Any] = value
        return result

    def object(self, values: Any, key: str) -> dict[str, Any]:
        return self.mapping(self.mapping(values, key).get(key), key)

    def array(self, values: Any, key: str) -> list[Any]:
        value: Any = self.mapping(values, key).get(key)
        if not isinstance(value, list):
            self.fail("an array is expected", key)
        result: list[Any] = value
        return result

    def text(self, values: Any, key: str) -> str:
        value = self.mapping(values, key).get(key)
        if not isinstance(value, str):
            self.fail("a text is expected", key)
        return str(value)

    def hash(self, values: Any, key: str) -> str:
        value = self.text(values, key)
        if not re.fullmatch("[0-9a-f]{64}", value):
            self.fail("a SHA-256 is expected", key)
        return value

    def number(self, values: Any, key: str) -> float:
        value: Any = self.mapping(values, key).get(key)
        if type(value) not in (int, float) or not 0 <= value < _MOST:
            self.fail("a number within reason is expected", key)
        return float(value)

    def integer(self, values: Any, key: str, least: int = 0) -> int:
        value: Any = self.mapping(values, key).get(key)
        if type(value) is not int or not least <= value < _MOST:
            self.fail("a number within reason is expected", key)
        return int(value)
