"""The libraries that others open an output with, imported when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["LIBRARY_CHECKS"]


def _safetensors_check() -> Callable[[Path], str]:
    from phiconv_formats.shared.safetensors_check import refusal

    return refusal


def _gguf_check() -> Callable[[Path], str]:
    from phiconv_formats.gguf.library_check import refusal

    return refusal


def _onnx_check() -> Callable[[Path], str]:
    from phiconv_formats.onnx.library_check import refusal

    return refusal


LIBRARY_CHECKS = {
    "safetensors": ("safetensors", _safetensors_check),
    "gguf": ("gguf", _gguf_check),
    "onnx": ("onnx.checker", _onnx_check),
}
"""By the end of a file's name: a library that others open it with, and what says why it refuses it ("")."""
