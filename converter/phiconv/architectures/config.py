"""Typed, validating access to config.json: every error names the file and the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phiconv.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Config", "fits_float32"]

_LARGEST = 1 << 31
# Of float32, which is what files and runtimes keep: what is rounded to infinity, and the smallest number with
# all its digits. Below that some runtimes take a number for 0.
_INFINITE = (2 - 2**-24) * 2.0**127
_SMALLEST = 2.0**-126


def fits_float32(value: float) -> bool:
    """Whether a number, but for its last digits, is one of float32 too."""
    return value == 0 or _SMALLEST <= abs(value) < _INFINITE


@dataclass(frozen=True, slots=True)
class Config:
    """A JSON object of a configuration file.

    Every getter takes alternative names, the first present one wins, and a default; without a default the key
    must be there. A null counts as absent.

    Attributes:
        values: The object.
        path: The file it comes from.
        prefix: Keys that lead to it, for messages.
    """

    values: Mapping[str, Any]
    path: Path | None = None
    prefix: str = ""

    def error(self, key: str, message: str, hint: str = "") -> ConfigError:
        """A `ConfigError` about one key."""
        return ConfigError(message, path=self.path, at=f"key {self.prefix}{key}", hint=hint)

    def get(self, *names: str) -> tuple[str, Any]:
        """The first of the names that has a value, and the value; (first name, None) if none has."""
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        return names[0], None

    def integer(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """An integer of at least ``least``; a float or a boolean is not one."""
        name, value = self.get(*names)
        if value is None:
            if default is None:
                raise self.error(name, "missing", "the folder may not be a complete model")
            return default
        if type(value) is not int or not least <= value < _LARGEST:
            raise self.error(name, f"must be an integer of at least {least}, not {value!r}")
        return value

    def optional_integer(self, *names: str, least: int = 1) -> int | None:
        """An integer, or None where it is absent or null."""
        return None if self.get(*names)[1] is None else self.integer(*names, least=least)

    def number(self, *names: str, default: float | None = None, zero: bool = False) -> float:
        """A positive finite number; JSON integers are taken too (Phi-4 writes its rope_theta as one).

        With ``zero`` it may be 0.
        """
        name, value = self.get(*names)
        if value is None:
            if default is None:
                raise self.error(name, "missing")
            return default
        return 0.0 if zero and type(value) in {int, float} and value == 0 else self._positive(name, value)

    def boolean(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self.get(name)[1]
        if value is None:
            return default
        if type(value) is not bool:
            raise self.error(name, f"must be true or false, not {value!r}")
        return value

    def choice(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        """One of a few strings."""
        value = self.get(name)[1]
        if value is None:
            return default
        if value not in allowed:
            raise self.error(name, f"{value!r} is not supported (only {', '.join(allowed)})")
        return str(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of exactly ``length`` positive finite numbers."""
        value = self.get(name)[1]
        if not isinstance(value, list):
            raise self.error(name, "missing" if value is None else f"must be a list, not {value!r}")
        if len(value) != length:
            raise self.error(
                name, f"has {len(value)} entries, but half of the rotated dimensions are {length}"
            )
        return tuple(self._positive(f"{name}[{i}]", item) for i, item in enumerate(value))

    def section(self, name: str) -> Config | None:
        """A nested object, or None where it is absent or null."""
        value = self.get(name)[1]
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object or null, not {value!r}")
        return Config(value, self.path, f"{self.prefix}{name}.")

    def _positive(self, name: str, value: object) -> float:
        if type(value) not in {int, float} or not value > 0:  # type: ignore[operator]
            raise self.error(name, f"must be a positive number, not {value!r}")
        if not fits_float32(value):  # type: ignore[arg-type]
            raise self.error(name, f"{printable(value, 40)} is no number of float32, which runtimes keep")
        return float(value)  # type: ignore[arg-type]
