"""Which windows of some texts are computed, and which are kept apart."""

from __future__ import annotations

import numpy as np
import pytest

from phiconv.errors import UsageError
from phiconv.quality.documents import Document, chosen, chosen_apart


def documents(*lengths):
    """Texts whose tokens tell which text they are of, and where they are in it."""
    return [Document(f"t{i}", "", np.arange(n) + 10_000 * i) for i, n in enumerate(lengths)]


def sources(windows):
    """How many windows are of each text."""
    numbers, counts = np.unique(windows[:, 0] // 10_000, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def test_one_text_gives_all_its_windows():
    assert chosen(documents(11), 4, None).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_shares_are_even_and_from_all_over():
    windows = chosen(documents(400, 40, 4000), 4, 90)
    assert sources(windows) == {0: 7, 1: 7, 2: 8}
    assert len(np.unique(windows[:, 0])) == 22
    last = windows[-8:, 0] - 20_000
    assert last[0] < 500
    assert last[-1] > 3500
    assert sources(chosen(documents(400, 8, 4000), 4, 90)) == {
        0: 10,
        1: 2,
        2: 10,
    }  # what one lacks, others give


def test_other_texts_are_kept_apart():
    fit, check = chosen_apart(documents(*[400] * 8), 4, 32 * 4)
    assert sources(check) == {3: 4, 7: 4}
    assert sources(fit) == {i: 4 for i in range(8) if i not in {3, 7}}
    fit, check = chosen_apart(documents(400, 400), 4, 64)
    assert (sources(fit), sources(check)) == ({0: 12}, {1: 4})


@pytest.mark.parametrize("lengths", [(400,), (8, 400), (400, 4), (3, 2, 400)])
def test_windows_are_kept_apart_where_texts_are_not_enough(lengths):
    fit, check = chosen_apart(documents(*lengths), 4, 64)
    assert (len(fit), len(check)) == (12, 4)
    assert not {*fit[:, 0].tolist()} & {*check[:, 0].tolist()}


def test_few_windows():
    for count in range(2, 9):
        fit, check = chosen_apart(documents(4 * count), 4, 1000)
        assert len(fit) + len(check) == count
        assert len(fit) >= len(check) >= 1


def test_short_texts_are_put_together():
    windows = chosen(documents(3, 3, 3, 5), 4, None)
    assert windows.tolist() == [
        [0, 1, 2, 10_000],
        [20_000, 20_001, 20_002, 30_000],
        [30_001, 30_002, 30_003, 30_004],
    ]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: chosen(documents(5), 6, None), "the text has 5 tokens, fewer than one window of 6"),
        (lambda: chosen(documents(50), 6, 5), "5 tokens are fewer than one window of 6"),
        (lambda: chosen(documents(50), 1, None), "too short"),
        (lambda: chosen_apart(documents(7), 4, 100), "needs two windows of 4 tokens, and here are 1"),
        (lambda: chosen_apart(documents(70), 4, 7), "needs two windows"),
    ],
)
def test_too_little(call, says):
    with pytest.raises(UsageError, match=says):
        call()
