"""The collector of cycles is as it was after a pause."""

from __future__ import annotations

import gc

import pytest

from phiconv_formats.shared.collector import collector_paused


def test_the_collector_goes_on_after_a_pause():
    with pytest.raises(ValueError, match="odd"), collector_paused():
        assert not gc.isenabled()
        raise ValueError("odd")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
