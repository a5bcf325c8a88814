"""Work in several threads, each with products of matrices of its own.

NumPy leaves products to a BLAS library, which splits each of them over all processors. On the small products
of a short text its threads mostly wait for each other, and where another program is at work a hundred times
longer than they compute. So the work is split here, in large parts, and BLAS is told to use one thread.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["alone", "parallel", "run"]

_lock = threading.Lock()
_own = threading.local()  # `alone`, of each thread
_inside = 0  # how many `parallel` blocks are being executed
_before = 1  # BLAS's number of threads outside of them


@contextmanager
def parallel() -> Iterator[None]:
    """BLAS uses one thread inside of this block, in the whole process, and as many as before after it."""
    global _inside, _before  # noqa: PLW0603 - the library's own setting is as global
    blas = _blas_threads()
    with _lock:
        if blas and not _inside:
            _before = blas[0]()
            blas[1](1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if blas and not _inside:
                blas[1](_before)


@contextmanager
def alone() -> Iterator[None]:
    """What this thread does inside of the block it does alone: others of its kind are at work beside it."""
    before, _own.alone = getattr(_own, "alone", False), True
    try:
        yield
    finally:
        _own.alone = before


def run(tasks: Iterable[Callable[[], None]]) -> None:
    """Carries tasks out, one per processor at a time; those of a `parallel` block.

    Inside of `alone`, and where BLAS cannot be told to use one thread, it is one after the other.

    Raises:
        Exception: The first one that a task raised.
    """
    if getattr(_own, "alone", False) or _blas_threads() is None:
        for task in tasks:
            _quiet(task)
        return
    futures = [_pool().submit(_quiet, task) for task in tasks]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()


def _quiet(task: Callable[[], None]) -> None:
    """A thread of its own has settings of its own for what NumPy warns of."""
    with np.errstate(all="ignore"):
        task()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="phiconv")


@cache
def _blas_threads() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """What gets and sets the number of threads of NumPy's BLAS; None where it is not a known OpenBLAS.

    A library hands out the functions of the libraries that it is linked with, too (but not on Windows).
    """
    try:
        library = ctypes.CDLL(sys.modules["numpy._core._multiarray_umath"].__file__ or "")
    except (KeyError, OSError):
        return None
    for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
        get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
        put = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
        if get is not None and put is not None:
            get.restype, put.restype, put.argtypes = ctypes.c_int, None, [ctypes.c_int]
            return get, put
    return None
