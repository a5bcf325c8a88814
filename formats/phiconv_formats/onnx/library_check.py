"""A graph, checked with ONNX's own checker; ONNX Runtime's operators it does not know, and lets pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["refusal"]


def refusal(path: Path) -> str:
    """Why it is refused; "" if it is not."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        return str(error).strip().partition("\n")[0]
    except (OSError, ValueError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return ""
