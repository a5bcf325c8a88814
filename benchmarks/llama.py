"""The released llama.cpp libraries."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

_FETCH = Path(__file__).resolve().parents[1] / "fixtures" / "fetch_llama.py"
_CANNOT = 3  # its exit code


def libraries() -> Path | str:
    """The folder of the released libraries, or why they cannot be had."""
    command = [sys.executable, _FETCH]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == _CANNOT:
        return done.stderr.strip().removeprefix("skipped: ")
    if done.returncode:
        sys.exit(done.stderr)
    return Path(done.stdout.strip())


def open_ggml(folder: Path) -> Callable[..., None]:
    """Gives ``quantize(type, float32 rows, packed, importance or None)``, a call of ggml_quantize_chunk."""
    ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]

    def quantize(kind: int, values: np.ndarray, packed: np.ndarray, weights: np.ndarray | None) -> None:
        into, by = packed.ctypes.data, None if weights is None else weights.ctypes.data
        used = ggml.ggml_quantize_chunk(kind, values.ctypes.data, into, 0, *values.shape, by)
        assert used == packed.size

    return quantize
