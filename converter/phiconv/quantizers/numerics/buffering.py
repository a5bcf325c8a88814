"""How NumPy walks over short rows."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["unbuffered"]

P = ParamSpec("P")
R = TypeVar("R")

_BUFFER = 1024
"""Numbers; NumPy's own choice is 8192."""


def unbuffered(function: Callable[P, R]) -> Callable[P, R]:
    """Lets NumPy take short rows where they are.

    It copies the operands of an operation on rows of at most half its buffer into that buffer, which costs as
    much as the operation; the usual one holds 8192 numbers.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        before = np.setbufsize(_BUFFER)
        try:
            return function(*args, **kwargs)
        finally:
            np.setbufsize(before)

    return wrapper
