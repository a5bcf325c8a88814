"""Signals that ask a command to end: it cleans up behind itself, and exits with 128 + the signal's number."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Ended", "ending_signals"]

# What ends a process unless it says otherwise, without being a fault of the process itself.
_ASKING = (
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGABRT",
    "SIGUSR1",
    "SIGUSR2",
    "SIGALRM",
    "SIGTERM",
    "SIGXCPU",
    "SIGVTALRM",
    "SIGPROF",
    "SIGIO",
    "SIGPWR",
    "SIGBREAK",
)


class Ended(KeyboardInterrupt):
    """A signal asked for the end.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def _end(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    raise Ended(number)


@contextlib.contextmanager
def ending_signals() -> Iterator[None]:
    """Turns signals into `Ended` while the block runs; what is ignored, as by nohup(1), stays ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _ASKING if hasattr(signal, name)):
            handler = signal.getsignal(number)
            if handler in {signal.SIG_DFL, signal.default_int_handler}:
                before[number] = handler
                signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
