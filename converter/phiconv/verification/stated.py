"""A receipt, read: it may come from a stranger, like the output that it is for.

What is not exactly as phiconv writes it is refused, so that nothing can hide in a receipt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from phiconv.conversion.manifest import is_plain_name
from phiconv.conversion.receipt import (
    BUILD_TYPE,
    CHOICES,
    OPTIONS,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    receipt_text,
)
from phiconv.errors import MalformedFileError, printable
from phiconv.recipes import Choices, override
from phiconv_formats.shared.files import read_small_file
from phiconv_formats.shared.patterns import takes_long
from phiconv_formats.shared.strict_json import parse_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Part", "Stated", "StatedTensor", "read_receipt"]

_LIMIT = 64 << 20
_SUM = re.compile(r"[0-9a-f]{64}")

_ANNOTATIONS = {"shape", "stored", "encoding", "action", "from", "segments"}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StatedTensor:
    """What a receipt says of a tensor: its name, the sum of its bytes, and where these are."""

    name: str
    digest: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Stated:
    """What a receipt says.

    Attributes:
        path: The receipt.
        statement: All of it.
        outputs: Sums of the files of the output, by name.
        sources: Those of the files that were read.
        tensors: The tensors of the output.
        source_name: What the source was called.
        format: The format.
        output: The name of the output; "" for a folder as a whole.
        options: Arguments of `phiconv.convert`.
        choices: The other ones.
        lora: The weights of the adapters that were merged.
        versions: What made it.
        own_sources: The sum of phiconv's own files.
    """

    path: Path
    statement: dict[str, Any]
    outputs: dict[str, str]
    sources: dict[str, str]
    tensors: tuple[StatedTensor, ...]
    source_name: str
    format: str
    output: str
    options: dict[str, Any]
    choices: Choices
    lora: tuple[float, ...]
    versions: dict[str, str]
    own_sources: str


def read_receipt(path: Path) -> Stated:
    """Reads a receipt.

    Raises:
        InputError: It cannot be read.
        MalformedFileError: It is none, or not as phiconv writes it.
    """
    data = read_small_file(path, _LIMIT)
    statement = parse_json(data, path=path, surrogates=True)
    found = _Reader(path).read(statement)
    if receipt_text(statement) != data:
        raise MalformedFileError("is not written as phiconv writes receipts: somebody edited it", path=path)
    return found


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads values that must be what phiconv writes; whatever is not is refused by its place."""

    path: Path

    def read(self, value: Any) -> Stated:
        top = self.object(value, "", {"_type", "subject", "predicateType", "predicate"})
        self.same(top["_type"], STATEMENT_TYPE, "_type")
        self.same(top["predicateType"], PREDICATE_TYPE, "predicateType")
        predicate = self.object(top["predicate"], "predicate", {"buildDefinition", "runDetails"})
        at = "predicate.buildDefinition"
        keys = {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
        definition = self.object(predicate["buildDefinition"], at, keys)
        self.same(definition["buildType"], BUILD_TYPE, f"{at}.buildType")
        external = self.object(
            definition["externalParameters"], f"{at}.externalParameters", {"source", "options"}, {"lora"}
        )
        internal = self.object(
            definition["internalParameters"],
            f"{at}.internalParameters",
            {"format", "recipe", "output", "tensor_types", "bytes_of"},
        )
        details = self.object(
            predicate["runDetails"], "predicate.runDetails", {"builder", "byproducts"}, {"metadata"}
        )
        outputs = self.sums(top["subject"], "subject")
        for name in outputs:
            if not is_plain_name(name):
                self.fail("subject", f"{printable(name, 60)} is no name of a file in a folder")
        options, choices = self.options(external["options"], f"{at}.externalParameters.options")
        versions, own = self.builder(details["builder"], "predicate.runDetails.builder")
        output = self.text(internal["output"], f"{at}.internalParameters.output")
        name = self.text(external["source"], f"{at}.externalParameters.source")
        for each in (output, name):
            if "/" in each or (each and not is_plain_name(each)):
                self.fail(at, f"{printable(each, 60)} is no name of a file")
        return Stated(
            self.path,
            top,
            outputs,
            self.sums(definition["resolvedDependencies"], f"{at}.resolvedDependencies"),
            self.tensors(details["byproducts"], "predicate.runDetails.byproducts", outputs),
            name,
            self.text(internal["format"], f"{at}.internalParameters.format"),
            output,
            options,
            choices,
            tuple(
                self.number(x, f"{at}.externalParameters.lora")
                for x in self.list(external.get("lora", []), at)
            ),
            versions,
            own,
        )

    def options(self, value: Any, at: str) -> tuple[dict[str, Any], Choices]:
        """Arguments of `phiconv.convert`, and the choices."""
        given = self.object(value, at, set(), {*OPTIONS, *CHOICES})
        for name, each in given.items():
            kind = {**OPTIONS, **CHOICES}[name]
            if type(each) is not kind and not (kind is float and type(each) is int):
                self.fail(f"{at}.{name}", f"is {printable(each, 60)}, of another type")
        choices = {name: each for name, each in given.items() if name in CHOICES}
        if "tensor_types" in choices:
            texts = [self.text(each, f"{at}.tensor_types") for each in choices["tensor_types"]]
            for each in texts:
                if takes_long(each.rpartition("=")[0]):
                    self.fail(f"{at}.tensor_types", f"{printable(each, 60)} might take long to match")
            choices["tensor_types"] = tuple(override(each) for each in texts)
        return {name: each for name, each in given.items() if name in OPTIONS}, Choices(**choices)

    def builder(self, value: Any, at: str) -> tuple[dict[str, str], str]:
        """What made it: versions, and the sum of phiconv's files."""
        found = self.object(value, at, {"id", "version", "builderDependencies"})
        versions = self.object(found["version"], f"{at}.version", {"phiconv", "numpy", "python"})
        own = self.sums(found["builderDependencies"], f"{at}.builderDependencies")
        if own.keys() != {"phiconv"}:
            self.fail(f"{at}.builderDependencies", "must be phiconv")
        return {name: self.text(v, f"{at}.version") for name, v in versions.items()}, own["phiconv"]

    def tensors(self, value: Any, at: str, outputs: dict[str, str]) -> tuple[StatedTensor, ...]:
        """The tensors, whose parts must be in the files."""
        found = []
        for number, each in enumerate(self.list(value, at)):
            place = f"{at}[{number}]"
            entry = self.object(each, place, {"name", "digest", "annotations"})
            said = self.object(entry["annotations"], f"{place}.annotations", _ANNOTATIONS)
            parts = [
                self.part(part, f"{place}.annotations.segments", outputs)
                for part in self.list(said["segments"], place)
            ]
            name = self.text(entry["name"], place)
            found.append(StatedTensor(name, self.digest(entry["digest"], place), tuple(parts)))
        return tuple(found)

    def part(self, value: Any, at: str, outputs: dict[str, str]) -> Part:
        """A part of a file."""
        found = self.object(value, at, {"file", "offset", "length"})
        name, offset, length = self.text(found["file"], at), found["offset"], found["length"]
        if name not in outputs:
            self.fail(at, f"{printable(name, 60)} is no file of the output")
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, length)):
            self.fail(at, "must be bytes of a file")
        return Part(name, offset, length)

    def sums(self, value: Any, at: str) -> dict[str, str]:
        """Names, each of which is there once, and sums."""
        found: dict[str, str] = {}
        for number, each in enumerate(self.list(value, at)):
            entry = self.object(each, f"{at}[{number}]", {"name", "digest"})
            name = self.text(entry["name"], f"{at}[{number}].name")
            if name in found:
                self.fail(at, f"{printable(name, 60)} is there twice")
            found[name] = self.digest(entry["digest"], f"{at}[{number}]")
        return found

    def digest(self, value: Any, at: str) -> str:
        """A sum."""
        text = self.text(self.object(value, f"{at}.digest", {"sha256"})["sha256"], f"{at}.digest")
        if not _SUM.fullmatch(text):
            self.fail(f"{at}.digest", "is no SHA-256 sum")
        return text

    def object(self, value: Any, at: str, keys: set[str], others: set[str] | None = None) -> dict[str, Any]:
        """An object with these keys, and maybe others."""
        if not isinstance(value, dict):
            self.fail(at, "must be an object")
        wrong = keys - {*value} or {*value} - keys - (others or set())
        if wrong:
            word = "is missing" if keys - {*value} else "is none of a receipt's"
            self.fail(at, f"the key {printable(min(wrong), 60)} {word}")
        return value

    def list(self, value: Any, at: str) -> list[Any]:
        """An array."""
        if not isinstance(value, list):
            self.fail(at, "must be an array")
        return value

    def text(self, value: Any, at: str) -> str:
        """A text."""
        if not isinstance(value, str):
            self.fail(at, "must be a text")
        return value

    def number(self, value: Any, at: str) -> float:
        """A number."""
        if type(value) not in {int, float}:
            self.fail(at, "must be a number")
        return float(value)

    def same(self, value: Any, expected: str, at: str) -> None:
        """One text and no other."""
        if value != expected:
            self.fail(at, f"is {printable(value, 80)}, where a receipt of phiconv has {expected}")

    def fail(self, at: str, message: str) -> NoReturn:
        raise MalformedFileError(message, path=self.path, at=at)
