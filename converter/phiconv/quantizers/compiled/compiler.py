"""Compiling a loop with numba, an optional extra, such that its numbers are NumPy's to the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compiled", "part"]

P = ParamSpec("P")
R = TypeVar("R")


def compiled(signature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compiles a function for one signature, at once; without Python's lock, so that threads run it together.

    There is no ``fastmath``, so the compiler neither reorders additions nor fuses them with multiplications.
    What was compiled is kept for the next process, in the first of numba's places that can be written:
    ``NUMBA_CACHE_DIR``, ``__pycache__`` beside the source, the user's cache. Where none can be, or where what
    is there cannot be read, every process compiles for itself. What is kept belongs to a source file, a kind
    of processor and a version of numba, and is never taken for another one's.

    Args:
        signature: The types, as numba spells them.
    """

    def compile_(function: Callable[P, R]) -> Callable[P, R]:
        settings: dict[str, Any] = {"nogil": True, "error_model": "numpy"}  # dividing by 0 raises nothing
        try:
            result = numba.njit(signature, cache=True, **settings)(function)
        except Exception:  # noqa: BLE001 - from reading or writing files, and from unpickling
            result = numba.njit(signature, **settings)(function)
        return cast("Callable[P, R]", result)

    return compile_


def part(function: Callable[P, R]) -> Callable[P, R]:
    """Marks a function that is compiled into those of its module that call it.

    Of its module alone: numba does not see that what it has kept is outdated if another file has changed.
    """
    return cast("Callable[P, R]", numba.njit(error_model="numpy")(function))
