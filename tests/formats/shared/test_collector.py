"""The collector of cycles is as it was after a pause."""

from __future__ import annotations

import gc

import pytest

from phiconv_formats.shared.collector import collector_paused


@collector_paused()
def fail():
    assert not gc.isenabled()
    raise ValueError("odd")


def test_the_collector_goes_on_after_a_pause():
    with pytest.raises(ValueError, match="odd"):
        fail()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
