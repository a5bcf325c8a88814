"""Interrupts wait where something must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["uninterrupted"]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets Python's signal handlers wait until the block ends, which must be a matter of moments.

    Elsewhere than in the main thread there are none.
    """
    before: dict[int, Callable[..., object]] = {}
    waiting: list[int] = []
    if threading.current_thread() is threading.main_thread():
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)
        if waiting:
            before[waiting[0]](waiting[0], None)
