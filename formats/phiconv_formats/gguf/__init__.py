"""GGUF, the file of llama.cpp: read strictly, written exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv_formats.gguf.names import output_tensors
from phiconv_formats.gguf.writer import package

if TYPE_CHECKING:
    from pathlib import Path

    from phiconv.ir.model import Checkpoint, Model
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["GgufWriter", "open_checkpoint"]


class GgufWriter:
    """The writer of GGUF version 3 (see `phiconv_formats.Writer`)."""

    package = staticmethod(package)

    def tensors(self, model: Model) -> list[OutputTensor]:
        """What llama.cpp wants stored, in llama-quantize's order."""
        return output_tensors(model)


def open_checkpoint(path: Path, companions: Path | None = None) -> Checkpoint:
    """Opens a GGUF file, or all files of a split one (see `checkpoint.open_checkpoint`)."""
    from phiconv_formats.gguf import checkpoint

    return checkpoint.open_checkpoint(path, companions)
