"""Processes to work in.

The searches of the K types consist of NumPy calls of some ten microseconds each. Threads that make such calls
hand each other Python's lock all the time; processes have one each.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection

__all__ = ["pool"]

_MOST = 61  # processes that Windows can wait for


def pool(jobs: int) -> ProcessPoolExecutor:
    """An executor of ``jobs`` processes, each started when there is work for it.

    They start afresh rather than as copies of this process, in which other threads may hold locks. So a
    script that calls this needs the usual ``if __name__ == "__main__":`` around what it does.
    """
    return ProcessPoolExecutor(
        min(jobs, _MOST), mp_context=multiprocessing.get_context("spawn"), initializer=_prepare
    )


def _prepare() -> None:
    """Leaves interrupts to the parent, which ends its processes in order, and ends when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
