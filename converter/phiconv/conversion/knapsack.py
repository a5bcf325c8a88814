"""Chooses one of several forms for each thing, with the least loss within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cheapest", "least_loss"]

_UNITS = 1 << 16
"""Into how many parts the budget is divided; every cost counts as a whole number of them, rounded up."""


def cheapest(costs: Sequence[Sequence[int]]) -> int:
    """What all things cost at least."""
    return sum(min(each) for each in costs)


def least_loss(
    costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int
) -> list[int] | None:
    """The choice with the least sum of losses whose costs are within the budget.

    It is exact but for the rounding of costs; what that leaves is spent on what gains most.

    Args:
        costs: Of every form of every thing.
        losses: The same for their losses.
        budget: What the costs may come to.

    Returns:
        The number of the form of each thing; None where even the cheapest ones are too much. Of equal choices
        it is always the same one.
    """
    spare = budget - cheapest(costs)
    if spare < 0:
        return None
    unit = max(spare // _UNITS, 1)
    room = spare // unit
    best = np.zeros(room + 1)  # the least loss so far, by the units that are spent at most
    chosen = np.zeros((len(costs), room + 1), np.uint8)
    extra = [[-(-(cost - min(each)) // unit) for cost in each] for each in costs]
    for row, (units, own) in enumerate(zip(extra, losses, strict=True)):
        found = np.full(room + 1, np.inf)
        for number, (cost, loss) in enumerate(zip(units, own, strict=True)):
            if cost > room:
                continue
            total = best[: room + 1 - cost] + loss
            better = total < found[cost:]
            found[cost:][better] = total[better]
            chosen[row, cost:][better] = number
        best = found
    result, left = [], room
    for row in range(len(costs) - 1, -1, -1):
        result.append(int(chosen[row, left]))
        left -= extra[row][result[-1]]
    return _filled(result[::-1], costs, losses, budget)


def _filled(
    chosen: list[int], costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int
) -> list[int]:
    """Spends what rounding has left over, on the step that gains most first."""
    while True:
        left = budget - sum(each[number] for each, number in zip(costs, chosen, strict=True))
        steps = [
            (losses[row][chosen[row]] - losses[row][other], -row, other)
            for row in range(len(costs))
            for other in range(len(costs[row]))
            if costs[row][other] - costs[row][chosen[row]] <= left
        ]
        gain, row, other = max(steps, default=(0.0, 0, 0))
        if not gain > 0:
            return chosen
        chosen[-row] = other
