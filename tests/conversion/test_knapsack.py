"""The choice of forms within a budget, against trying all of them."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from phiconv.conversion.knapsack import least_loss

things = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 50)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@given(things, st.integers(0, 300))
def test_it_is_the_best_there_is(forms, budget):
    costs = [[cost for cost, _ in each] for each in forms]
    losses = [[float(loss) for _, loss in each] for each in forms]
    possible = [
        sum(loss for _, loss in choice)
        for choice in itertools.product(*forms)
        if sum(cost for cost, _ in choice) <= budget
    ]
    found = least_loss(costs, losses, budget)
    if not possible:
        assert found is None
        return
    assert found is not None
    assert sum(each[n] for each, n in zip(costs, found, strict=True)) <= budget
    assert sum(each[n] for each, n in zip(losses, found, strict=True)) == min(possible)


@settings(max_examples=10)
@given(st.integers(1, 60), st.integers(1 << 30, 1 << 34))
def test_large_budgets_are_used(count, budget):
    """Costs are rounded to parts of the budget, but not more than that is lost."""
    steps = [[size * budget // 40 // count for size in range(20, 60, 5)] for _ in range(count)]
    losses = [[1.0 / size for size in range(20, 60, 5)] for _ in range(count)]
    found = least_loss(steps, losses, budget)
    assert found is not None
    spent = sum(each[n] for each, n in zip(steps, found, strict=True))
    assert 0.99 * budget - budget / 40 / count <= spent <= budget
