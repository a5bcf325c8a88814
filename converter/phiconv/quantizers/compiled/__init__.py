"""The searches of ggml's quantizers as compiled loops: the same numbers, several times as fast.

numba compiles them, an optional extra. NumPy's searches say what is computed; a compiled one that does not
give the same numbers is not used.
"""

from __future__ import annotations

import importlib.util
import os
import threading

__all__ = ["available", "expect"]

_SETTING = "PHICONV_NUMBA"
"""The environment variable that says when to compile: 0 for never, 1 for always."""

_WORTH = 1 << 26
"""Weights to search for which it pays. NumPy takes two to five seconds for so many; importing numba and
reading what was compiled before takes half a second, compiling what a mixture needs three."""

_lock = threading.Lock()
_expected = 0
_usable: bool | None = None


def available() -> bool:
    """Whether numba is installed, and is to be used."""
    return os.environ.get(_SETTING) != "0" and importlib.util.find_spec("numba") is not None


def expect(weights: int) -> bool:
    """Takes note that so many weights more are to be searched.

    Returns:
        Whether it pays to use what is compiled, which can be done.
    """
    global _expected, _usable  # noqa: PLW0603 - of the process, as compiled code is
    if _usable is None:
        with _lock:
            _expected += weights
            if _expected >= _WORTH or os.environ.get(_SETTING) == "1":
                _usable = available() and _compiles()
    return _usable is True


def _compiles() -> bool:
    """Whether numba works: it does not with a NumPy that it does not know yet."""
    try:
        import numba
    except Exception:  # noqa: BLE001 - as others' imports may raise anything
        return False
    return not numba.config.DISABLE_JIT
