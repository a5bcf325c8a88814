"""ONNX: graphs for ONNX Runtime, in the folders that ONNX Runtime GenAI loads, written and read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv_formats.onnx.names import output_tensors
from phiconv_formats.onnx.reader import open_checkpoint
from phiconv_formats.onnx.writer import package

if TYPE_CHECKING:
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["OnnxWriter", "open_checkpoint"]


class OnnxWriter:
    """The writer of ONNX models (see `phiconv_formats.Writer`)."""

    package = staticmethod(package)

    def tensors(self, model: Model) -> list[OutputTensor]:
        """What the decoder asks for, in its order."""
        return output_tensors(model)
