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

import numpy as np

from phiconv.errors import MalformedFileError, printable
from phiconv_formats.shared.files import read_small_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

__all__ = ["load_json", "load_json_object", "parse_json", "parse_json_object"]

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


_MAX_MEMORY = 180 << 20  # the largest tokenizer.json of a Phi model takes 130 MB

# Bytes of UTF-8 from which on every character of a string takes four bytes in Python, or two.
_FOUR, _TWO = 0xF0, 0xC4
_CONTINUATION = -0x40
"""Less than this, as a signed number, is a byte that goes on with a character."""

_CHUNK = 1 << 16
_LETTER = re.compile(rb"\\u(?!00)")


def load_json(path: str | PathLike[str], *, limit: int) -> Any:
    """Parses a file of at most ``limit`` bytes.

    Raises:
        MalformedFileError: The file is larger, or is not strict JSON.
    """
    return parse_json(read_small_file(path, limit), path=path)


def load_json_object(
    path: str | PathLike[str], *, limit: int, max_values: int | None = None
) -> dict[str, Any]:
    """Parses a file of at most ``limit`` bytes that holds one object; ``max_values`` is `parse_json`'s.

    Raises:
        MalformedFileError: The file is larger, is not strict JSON, or holds something else.
    """
    return parse_json_object(read_small_file(path, limit), path=path, max_values=max_values)


def parse_json_object(
    data: bytes, *, path: str | PathLike[str], max_values: int | None = None
) -> dict[str, Any]:
    """Parses UTF-8 bytes that hold one object; ``path`` is for messages.

    Raises:
        MalformedFileError: It is not strict JSON, or something else.
    """
    value = parse_json(data, path=path, max_values=max_values)
    if not isinstance(value, dict):
        raise MalformedFileError(f"expected a JSON object, found {_kind(value)}", path=path)
    return value


def parse_json(
    data: bytes,
    *,
    path: str | PathLike[str],
    at: str = "",
    max_values: int | None = None,
    surrogates: bool = False,
) -> Any:
    """Parses UTF-8 bytes.

    Args:
        data: The JSON text.
        path: The file it is from, for messages.
        at: Where in that file it is, for messages; empty for the whole file.
        max_values: Refuses more values than that.
        surrogates: Lets half of a surrogate pair pass, which is how Python has a file name that is no UTF-8.

    Raises:
        MalformedFileError: It is not strict JSON.
    """
    strict = _Strict(path, at)
    # Every value but the first follows one of these; those inside strings count too, which does not hurt.
    marks = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if max_values is not None and marks > max_values:
        strict.fail(f"not usable JSON: more than {max_values} values")
    if _memory(data, marks) > _MAX_MEMORY:
        strict.fail(f"not usable JSON: it would take more than {_MAX_MEMORY >> 20} MiB of memory")
    text = strict.decode(data)
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


def _memory(data: bytes, marks: int) -> int:
    """About how many bytes a text takes in memory together with its values; nothing is decoded yet.

    A value takes up to 64 bytes beside its characters, and with a key 160 more, until the object is a dict.
    """
    characters, highest = _characters(data)
    width = 4 if highest >= _FOUR else 2 if highest >= _TWO else 1
    escaped = 4 if _SURROGATE_ESCAPE.search(data) else 2 if _LETTER.search(data) else 1
    text = characters * (width + max(width, escaped))
    return len(data) + text + 64 * marks + 160 * data.count(b":")  # while it is read there are two of it


def _characters(data: bytes) -> tuple[int, int]:
    """How many characters UTF-8 bytes have, and the highest byte."""
    if data.isascii():
        return len(data), 0
    characters, highest = 0, 0
    for start in range(0, len(data), _CHUNK):
        chunk = np.frombuffer(data, np.uint8, min(_CHUNK, len(data) - start), start)
        characters += int(np.count_nonzero(chunk.view(np.int8) >= _CONTINUATION))
        highest = max(highest, int(chunk.max()))
    return characters, highest


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
