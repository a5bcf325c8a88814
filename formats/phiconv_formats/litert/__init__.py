"""LiteRT: the TFLite graph of a language model, and the file around it that LiteRT-LM runs; both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv_formats.litert.names import output_tensors
from phiconv_formats.litert.reader import open_checkpoint
from phiconv_formats.litert.writer import package

if TYPE_CHECKING:
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["LiteRtWriter", "open_checkpoint"]


class LiteRtWriter:
    """The writer of LiteRT models (see `phiconv_formats.Writer`)."""

    package = staticmethod(package)

    def tensors(self, model: Model) -> list[OutputTensor]:
        """What the graph reads, in its order."""
        return output_tensors(model)
