"""ONNX: graphs for ONNX Runtime, in the folders that ONNX Runtime GenAI loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv_formats.onnx.names import output_tensors
from phiconv_formats.onnx.writer import package

if TYPE_CHECKING:
    from phiconv.model import Model
    from phiconv_formats.output import OutputTensor

__all__ = ["OnnxWriter"]


class OnnxWriter:
    """The writer of ONNX models (see `phiconv_formats.Writer`)."""

    package = staticmethod(package)

    def tensors(self, model: Model) -> list[OutputTensor]:
        """What the decoder asks for, in its order."""
        return output_tensors(model)
