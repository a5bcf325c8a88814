"""OpenVINO: the IR of a language model, and the folder around it; written, and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv_formats.openvino.names import output_tensors
from phiconv_formats.openvino.reader import open_checkpoint
from phiconv_formats.openvino.writer import package

if TYPE_CHECKING:
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["OpenVinoWriter", "open_checkpoint"]


class OpenVinoWriter:
    """The writer of OpenVINO models (see `phiconv_formats.Writer`)."""

    package = staticmethod(package)

    def tensors(self, model: Model) -> list[OutputTensor]:
        """What the graph reads, in its order."""
        return output_tensors(model)
