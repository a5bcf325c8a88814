"""Byte-pair encoding: neighbours are merged, always the pair of the lowest rank, the leftmost of them first.

(Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; ranks as in GPT-2 and in SentencePiece.)
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Merges", "merge", "merges_of_pairs", "merges_of_scores"]

Merges: TypeAlias = "dict[tuple[int, int], tuple[float, int]]"
"""Rank (the lowest merges first) and id of the joined token, by the ids of the two that are joined."""

_GONE = -1


def merge(symbols: Sequence[int], merges: Merges) -> list[int]:
    """Merges until no pair of neighbours can be merged.

    Args:
        symbols: Ids of the single characters, or bytes, of a word.
        merges: What can be merged.

    Returns:
        The ids of the word. A word of n symbols takes O(n log n) steps.
    """
    ids = list(symbols)
    if len(ids) < 2:
        return ids
    # A linked list: symbol i joins its successor, which is gone from then on. The heap keeps candidates that
    # no longer exist; they are passed over when their turn comes.
    following = [*range(1, len(ids)), _GONE]
    previous = list(range(-1, len(ids) - 1))
    heap: list[tuple[float, int, int]] = []

    def propose(left: int, right: int) -> None:
        if (found := merges.get((ids[left], ids[right]))) is not None:
            rank, joined = found
            heappush(heap, (rank, left, joined))

    for right in range(1, len(ids)):
        propose(right - 1, right)
    while heap:
        rank, left, joined = heappop(heap)
        right = following[left]
        if right == _GONE or merges.get((ids[left], ids[right])) != (rank, joined):
            continue
        ids[left], ids[right] = joined, _GONE
        after = following[left] = following[right]
        following[right] = _GONE
        if after != _GONE:
            previous[after] = left
            propose(left, after)
        if previous[left] != _GONE:
            propose(previous[left], left)
    return [i for i in ids if i != _GONE]


def merges_of_pairs(pairs: Sequence[tuple[str, str]], ids: Mapping[str, int]) -> Merges:
    """Merges from the pairs in the order in which they merge.

    Args:
        pairs: Two tokens each; a pair that a vocabulary lacks the tokens for is left out.
        ids: Id by token.
    """
    result: Merges = {}
    for rank, (left, right) in enumerate(pairs):
        a, b, joined = ids.get(left), ids.get(right), ids.get(left + right)
        if a is not None and b is not None and joined is not None:
            result[a, b] = (rank, joined)  # where a pair is there twice, the last counts
    return result


def merges_of_scores(ids: Mapping[str, int], scores: Sequence[float]) -> Merges:
    """SentencePiece's merges: any two pieces merge that make a piece, the best score first.

    Args:
        ids: Id by piece, of those that can be merged.
        scores: Score by id.
    """
    return {
        (ids[piece[:cut]], ids[piece[cut:]]): (-scores[i], i)
        for piece, i in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    }
