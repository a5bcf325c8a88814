"""Cutting an output into files of a largest size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from phiconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["split"]


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


def split(entries: Iterable[T], limit: int | None, most: int) -> list[list[T]]:
    """Puts tensors into one file after the other.

    A file takes tensors until the next one would not fit any more; one that is larger than the limit has a
    file of its own.

    Args:
        entries: What knows its ``nbytes``, in order.
        limit: Most bytes of tensors in one file; None for a single file.
        most: How many files the names of the format can count.

    Raises:
        UsageError: There would be more files than that.
    """
    result: list[list[T]] = [[]]
    size = 0
    for entry in entries:
        if limit is not None and result[-1] and size + entry.nbytes > limit:
            result.append([])
            size = 0
        result[-1].append(entry)
        size += entry.nbytes
    if len(result) > most:
        raise UsageError(f"--split-max-size would make {len(result)} files", hint="use a larger size")
    return result
