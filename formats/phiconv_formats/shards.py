"""Checkpoints in several files, as Hugging Face folders have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from phiconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["shard_names", "split"]

_MOST = 99_999  # five digits


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


def split(entries: Sequence[T], limit: int) -> list[list[T]]:
    """Tensors go to a shard until the next one would not fit; a larger one has a shard of its own.

    Args:
        entries: The tensors in order.
        limit: Most bytes of tensors in a shard.

    Raises:
        UsageError: There would be too many files.
    """
    shards: list[list[T]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    if len(shards) > _MOST:
        raise UsageError(f"--split-max-size would make {len(shards)} files", hint="use a larger size")
    return shards


def shard_names(count: int) -> list[str]:
    """The usual names of the files."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
