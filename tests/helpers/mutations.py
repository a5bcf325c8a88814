"""Changes of valid files, for fuzzing: what a reader must survive, as a strategy of Hypothesis.

A change is small data, applied by a pure function. So Hypothesis can shrink a failure to the fewest and
smallest changes, and print them. Places are fractions: the same changes fit a file of any length.
"""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EXTREMES", "Change", "JsonChange", "changes", "json_changes", "mutate", "mutate_json"]

EXTREMES = (
    *(0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
"""Numbers at which counts, lengths, offsets and types are read wrongly."""

_KINDS = ("flip", "byte", "cut", "insert", "repeat", "swap", "end", "integer", "digits")
_DIGITS = frozenset(b"0123456789")


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a file.

    Attributes:
        kind: What is done, one of the cases of `mutate`.
        at: Where, as a fraction of the file.
        other: Another place, or how much.
        size: How many bytes it touches.
        number: What a number becomes.
        content: What is put in.
    """

    kind: str
    at: float
    other: float = 0.0
    size: int = 1
    number: int = 0
    content: bytes = b""


Changes: TypeAlias = "Sequence[Change]"


def changes(*, most: int = 4, content: Sequence[bytes] = ()) -> st.SearchStrategy[list[Change]]:
    """One to ``most`` changes.

    Args:
        most: How many.
        content: Pieces of the format that make sense in more than one place; they are inserted, too.
    """
    pieces = st.binary(min_size=1, max_size=9)
    # Squares: most places are near the start, where headers are.
    place = st.floats(0, 1, exclude_max=True).map(lambda x: x * x) | st.floats(0, 1, exclude_max=True)
    return st.lists(
        st.builds(
            Change,
            st.sampled_from(_KINDS),
            place,
            st.floats(0, 1, exclude_max=True),
            st.sampled_from([1, 2, 4, 8]) | st.integers(1, 64),
            st.sampled_from(EXTREMES) | st.integers(0, 70),
            (st.sampled_from(list(content)) | pieces) if content else pieces,
        ),
        min_size=1,
        max_size=most,
    )


def mutate(data: bytes, wanted: Changes) -> bytes:
    """A file after these changes, one after the other."""
    changed = bytearray(data)
    for change in wanted:
        if changed:
            _apply(changed, change)
    return bytes(changed)


def _apply(data: bytearray, change: Change) -> None:
    at, size = int(change.at * len(data)), change.size
    match change.kind:
        case "flip":
            data[at] ^= 1 << (change.number % 8)
        case "byte":
            data[at] = change.content[0]
        case "cut":
            del data[at : at + size]
        case "insert":
            data[at:at] = change.content
        case "repeat":
            data[at:at] = data[at : at + size]
        case "swap":
            other = int(change.other * len(data))
            size = min(size, abs(other - at), len(data) - max(at, other))
            first, second = data[at : at + size], data[other : other + size]
            data[at : at + size], data[other : other + size] = second, first
        case "end":
            del data[at:]
        case "integer":
            width = 8 if size >= 8 else min(4, size)
            at = min(at, len(data) - 1)
            encoded = struct.pack("<Q", change.number)[:width]
            data[at : at + width] = encoded[: len(data) - at]
        case "digits":
            _change_number(data, at, change.number)
        case _:
            raise ValueError(change.kind)


def _change_number(data: bytearray, at: int, number: int) -> None:
    """Replaces the next run of decimal digits, as JSON has them."""
    start = next((i for i in range(at, min(at + 4096, len(data))) if data[i] in _DIGITS), None)
    if start is not None:
        stop = start
        while stop < len(data) and data[stop] in _DIGITS:
            stop += 1
        data[start:stop] = str(number).encode()


# ------------------------------------------------------------------------------------------------------ JSON

_VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        "",
        "x",
        "\0",
        "../x",
        "3072",
        [],
        {},
        [[]],
        [None],
        {"": 0},
        0.5,
        -1,
        -(1 << 63),
        1e308,
    ]
) | st.sampled_from(EXTREMES)


@dataclass(frozen=True, slots=True)
class JsonChange:
    """One change of a JSON value.

    Attributes:
        kind: "set", "delete", "rename" or "copy" (a value from somewhere else).
        at: Where, as a fraction of all places.
        other: Another place.
        value: What is put there.
    """

    kind: str
    at: float
    other: float
    value: Any


def json_changes(*, most: int = 3) -> st.SearchStrategy[list[JsonChange]]:
    """One to ``most`` changes of a JSON value that stay valid JSON."""
    fraction = st.floats(0, 1, exclude_max=True)
    kinds = st.sampled_from(["set", "set", "set", "delete", "rename", "copy"])
    return st.lists(st.builds(JsonChange, kinds, fraction, fraction, _VALUES), min_size=1, max_size=most)


def mutate_json(value: Any, wanted: Sequence[JsonChange]) -> Any:
    """A JSON value after these changes."""
    value = copy.deepcopy(value)
    for change in wanted:
        places = _places(value)
        if not places:
            break
        container, key = places[int(change.at * len(places))]
        if change.kind == "set":
            container[key] = copy.deepcopy(change.value)
        elif change.kind == "delete":
            del container[key]
        elif change.kind == "copy":
            other, other_key = places[int(change.other * len(places))]
            container[key] = copy.deepcopy(other[other_key])
        elif isinstance(container, dict):
            container[f"{key}{change.value}"] = container.pop(key)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value that holds another one: a container, and a key or an index."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        item = left.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        found += [(item, key) for key in keys]
        left += [item[key] for key in keys]
    return found
