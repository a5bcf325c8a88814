"""The metadata of a GGUF file, key by key: every value checked, every error naming the file and the key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv.errors import ConfigError, MalformedFileError, printable
from phiconv_formats.gguf.values import GgufValue, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Entries", "shortest"]

_LARGEST = 1 << 31
_INTEGERS = frozenset(
    {
        ValueType.UINT8, ValueType.INT8, ValueType.UINT16, ValueType.INT16,
        ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64,
    }
)  # fmt: skip
_FLOATS = frozenset({ValueType.FLOAT32})  # the only fractions that the runtime reads


def shortest(value: float) -> float:
    """The number with the fewest digits that is this one as float32: 1e-05 for 9.999999747378752e-06.

    A GGUF holds float32, a config.json holds decimals. So a number that went through float32 comes back as
    it was written, and gives the same float32 again.
    """
    return float(str(np.float32(value)))


@dataclass(frozen=True, slots=True)
class Entries:
    """Typed access to a file's metadata; every getter returns None for a key that is not there.

    Attributes:
        values: The metadata.
        path: The file, for messages.
        architecture: What ``{arch}`` in a key stands for.
    """

    values: Mapping[str, GgufValue]
    path: Path
    architecture: str = ""

    def key(self, template: str) -> str:
        """The full name of a key."""
        return template.replace("{arch}", self.architecture)

    def error(self, template: str, message: str, hint: str = "") -> ConfigError:
        """A `ConfigError` about one key."""
        return ConfigError(message, path=self.path, at=f"key {self.key(template)}", hint=hint)

    def need(self, template: str) -> int:
        """An integer that must be there."""
        value = self.integer(template)
        if value is None:
            raise self.error(template, "missing", "the file may not be a complete model")
        return value

    def integer(self, template: str, *, least: int = 0) -> int | None:
        """An integer from ``least`` to 2**31 - 1."""
        value = self._scalar(template, _INTEGERS, "an integer")
        if value is not None and not least <= value < _LARGEST:
            raise self.error(template, f"must be an integer from {least} on, not {value}")
        return None if value is None else int(value)

    def number(self, template: str) -> float | None:
        """A positive finite number, see `shortest`."""
        return self._finite(template, "a positive number", math.ulp(0.0))

    def any_number(self, template: str) -> float | None:
        """A finite number of any sign, see `shortest`."""
        return self._finite(template, "a finite number", -math.inf)

    def _finite(self, template: str, what: str, least: float) -> float | None:
        value = self._scalar(template, _FLOATS, "a fraction")
        if value is not None and not (math.isfinite(value) and value >= least):
            raise self.error(template, f"must be {what}, not {value!r}")
        return None if value is None else shortest(value)

    def flag(self, template: str) -> bool | None:
        """True or false."""
        value = self._scalar(template, frozenset({ValueType.BOOL}), "true or false")
        return None if value is None else bool(value)

    def text(self, template: str) -> str | None:
        """A string of valid UTF-8."""
        value = self._scalar(template, frozenset({ValueType.STRING}), "a string")
        return None if value is None else self._utf8(template, [str(value)])[0]

    def texts(self, template: str) -> list[str] | None:
        """An array of strings of valid UTF-8."""
        value = self._array(template, frozenset({ValueType.STRING}), "strings")
        return None if value is None else self._utf8(template, value)

    def integers(self, template: str, length: int) -> list[int] | None:
        """An array of exactly ``length`` integers."""
        return self._sized(template, self._array(template, _INTEGERS, "integers"), length)

    def numbers(self, template: str, length: int) -> list[float] | None:
        """An array of exactly ``length`` finite numbers, as they are stored."""
        values = self._sized(template, self._array(template, _FLOATS, "fractions"), length)
        if values is not None and not all(map(math.isfinite, values)):
            raise self.error(template, "holds a number that is not finite")
        return values

    def _scalar(self, template: str, kinds: frozenset[ValueType], what: str) -> Any:
        found = self.values.get(self.key(template))
        if found is not None and found.type not in kinds:
            raise self.error(template, f"expected {what}, found {printable(_describe(found), 60)}")
        return None if found is None else found.value

    def _array(self, template: str, kinds: frozenset[ValueType], what: str) -> list[Any] | None:
        found = self.values.get(self.key(template))
        if found is not None and (found.type is not ValueType.ARRAY or found.item_type not in kinds):
            message = f"expected an array of {what}, found {printable(_describe(found), 60)}"
            raise self.error(template, message)
        return None if found is None else found.value

    def _sized(self, template: str, values: list[Any] | None, length: int) -> list[Any] | None:
        if values is not None and len(values) != length:
            raise self.error(template, f"has {len(values)} entries, where {length} are expected")
        return values

    def _utf8(self, template: str, values: list[str]) -> list[str]:
        if not _encodes(values):
            index = next(i for i, value in enumerate(values) if not _encodes([value]))
            message = f"string {index} is not valid UTF-8"
            raise MalformedFileError(message, path=self.path, at=f"key {self.key(template)}")
        return values


def _encodes(values: Sequence[str]) -> bool:
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe(value: GgufValue) -> str:
    if value.type is ValueType.ARRAY:
        items = value.item_type.name if value.item_type is not None else "nothing"
        return f"an array of {items}"
    return f"{value.value!r} ({value.type.name})"
