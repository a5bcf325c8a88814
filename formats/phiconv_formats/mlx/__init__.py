"""MLX: the folders of mlx-lm and LM Studio, written with mlx's own tensors and read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv_formats.mlx.names import output_tensors
from phiconv_formats.mlx.writer import package

if TYPE_CHECKING:
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["MlxWriter"]


class MlxWriter:
    """The writer of MLX folders (see `phiconv_formats.Writer`)."""

    package = staticmethod(package)

    def tensors(self, model: Model) -> list[OutputTensor]:
        """What mlx-lm wants stored, in its order."""
        return output_tensors(model)
