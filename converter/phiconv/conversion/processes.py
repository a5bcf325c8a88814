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
from multiprocessing import connection, resource_tracker

__all__ = ["pool"]

_OF_TERMINALS = ("SIGINT", "SIGQUIT", "SIGHUP")  # which go to all processes of a command at once
_MOST = 61  # processes that Windows can wait for


def pool(jobs: int) -> ProcessPoolExecutor:
    """An executor of ``jobs`` processes, each started when there is work for it.

    They start afresh rather than as copies of this process, in which other threads may hold locks. So a
    script that calls this needs the usual ``if __name__ == "__main__":`` around what it does.
    """
    _start_tracker()
    return ProcessPoolExecutor(
        min(jobs, _MOST), mp_context=multiprocessing.get_context("spawn"), initializer=_prepare
    )


def _start_tracker() -> None:
    """Starts multiprocessing's own helper such that it does not end with the terminal, before its parent."""
    if not hasattr(signal, "pthread_sigmask"):
        return
    # What is blocked now, for a moment, is so for ever in a process that is started now.
    of_terminals = {getattr(signal, name) for name in _OF_TERMINALS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, of_terminals)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare() -> None:
    """Leaves interrupts to the parent, which ends its processes in order, and ends when the parent does."""
    for name in _OF_TERMINALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
