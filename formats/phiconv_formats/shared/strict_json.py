"""JSON as a converter may trust it: one meaning per file, and every fault named.

The standard parser lets through what other parsers read differently or refuse: duplicate keys (the last one
wins), NaN and infinity, UTF-16, half of a surrogate pair. None of it passes here.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from phiconv.errors import MalformedFileError, printable
from phiconv_formats.shared.files import read_small_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

__all__ = ["MAX_VALUES", "load_json", "load_json_object", "parse_json", "parse_json_object"]

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")

MAX_VALUES = 4_000_000
"""Values that a text may hold; the largest tokenizer.json of a Phi model has about 0.8 million."""


def load_json(path: str | PathLike[str], *, limit: int) -> Any:
    """Parses a file of at most ``limit`` bytes.

    Raises:
        MalformedFileError: The file is larger, or is not strict JSON.
    """
    return parse_json(read_small_file(path, limit), path=path)


def load_json_object(path: str | PathLike[str], *, limit: int) -> dict[str, Any]:
    """Parses a file of at most ``limit`` bytes that holds one object.

    Raises:
        MalformedFileError: The file is larger, is not strict JSON, or holds something else.
    """
    return parse_json_object(read_small_file(path, limit), path=path)


def parse_json_object(data: bytes, *, path: str | PathLike[str]) -> dict[str, Any]:
    """Parses UTF-8 bytes that hold one object; ``path`` is for messages.

    Raises:
        MalformedFileError: It is not strict JSON, or something else.
    """
    value = parse_json(data, path=path)
    if not isinstance(value, dict):
        raise MalformedFileError(f"expected a JSON object, found {_kind(value)}", path=path)
    return value


def parse_json(
    data: bytes,
    *,
    path: str | PathLike[str],
    at: str = "",
    max_values: int = MAX_VALUES,
    surrogates: bool = False,
) -> Any:
    """Parses UTF-8 bytes.

    Args:
        data: The JSON text.
        path: The file it is from, for messages.
        at: Where in that file it is, for messages; empty for the whole file.
        max_values: Refuses more values than that: 3 bytes of text can become 64 bytes of memory.
        surrogates: Lets half of a surrogate pair pass, which is how Python has a file name that is no UTF-8.

    Raises:
        MalformedFileError: It is not strict JSON.
    """
    strict = _Strict(path, at)
    text = strict.decode(data)
    # Every value but the first follows one of these; those inside strings count too, which does not hurt.
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > max_values:
        strict.fail(f"not usable JSON: more than {max_values} values")
    try:
        value = json.loads(
            text, object_pairs_hook=strict.object, parse_float=strict.number, parse_constant=strict.constant
        )
    except MalformedFileError:
        raise
    except json.JSONDecodeError as error:
        strict.fail(f"not valid JSON: {error.msg}", f"line {error.lineno} column {error.colno}")
    except RecursionError:
        strict.fail("not usable JSON: arrays or objects are nested too deeply")
    except ValueError:  # Python's own limit on the digits of an integer
        strict.fail("not usable JSON: an integer has too many digits")
    if not surrogates and _escapes_surrogates(data):
        strict.check_surrogates(value)
    return value


@dataclass(frozen=True, slots=True)
class _Strict:
    """The hooks that the standard parser calls, and how they complain."""

    path: str | PathLike[str]
    at: str

    def fail(self, message: str, place: str = "") -> NoReturn:
        at = ", ".join(part for part in (self.at, place) if part)
        raise MalformedFileError(message, path=self.path, at=at) from None

    def decode(self, data: bytes) -> str:
        if data.startswith(b"\xef\xbb\xbf"):
            self.fail("not strict JSON: it starts with a byte order mark", "byte 0")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail("not valid UTF-8", f"byte {error.start}")

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            self.fail("the key is there twice in one object", f"key {_first_duplicate(pairs)}")
        return result

    def number(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            self.fail(f"the number {printable(text, 40)} is too large")
        return value

    def constant(self, name: str) -> NoReturn:
        self.fail(f"{name} is not a JSON number")

    def check_surrogates(self, value: Any) -> None:
        """Refuses half of a surrogate pair: no UTF-8 file could hold the string again."""
        waiting: list[tuple[str, Any]] = [("", value)]
        while waiting:
            key, item = waiting.pop()
            if isinstance(item, str):
                if not _encodable(item):
                    place = f"key {printable(key, 80)}" if key else ""
                    self.fail("a string holds half of a surrogate pair", place)
            elif isinstance(item, list):
                odd = not _all_encodable(item)
                waiting.extend((key, child) for child in item if odd or type(child) is not str)
            elif isinstance(item, dict):
                waiting.extend((name, name) for name in (() if _all_encodable(item) else item))
                odd = not _all_encodable(item.values())
                waiting.extend(pair for pair in item.items() if odd or type(pair[1]) is not str)


def _first_duplicate(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    return ""


def _escapes_surrogates(data: bytes) -> bool:
    """Whether there is an escape of a surrogate; after an odd number of backslashes it is a text."""
    for match in _SURROGATE_ESCAPE.finditer(data):
        first = match.start()
        while first and data[first - 1] == 0x5C:
            first -= 1
        if (match.start() - first) % 2 == 0:
            return True
    return False


def _all_encodable(values: Iterable[Any]) -> bool:
    """`_encodable` for all strings among some values, at once."""
    return _encodable("".join([value for value in values if type(value) is str]))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
