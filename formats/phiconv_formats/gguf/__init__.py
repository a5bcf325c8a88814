"""GGUF, the file of llama.cpp: read strictly, written exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv_formats.gguf.modelfile import with_modelfile
from phiconv_formats.gguf.names import output_tensors
from phiconv_formats.gguf.projector import projector_tensors, with_projector
from phiconv_formats.gguf.writer import package

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from phiconv.ir import Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Checkpoint, Model
    from phiconv_formats.shared.output import OutputTensor, Package, RuntimeSettings

__all__ = ["GgufWriter", "open_checkpoint"]


class GgufWriter:
    """The writer of GGUF version 3 (see `phiconv_formats.Writer`)."""

    def tensors(self, model: Model) -> list[OutputTensor]:
        """What llama.cpp wants stored, in llama-quantize's order; then what it sees with."""
        return [*output_tensors(model), *projector_tensors(model)]

    def package(
        self,
        model: Model,
        tensors: Sequence[OutputTensor],
        encodings: Sequence[Encoding],
        *,
        file_name: str,
        recipe: str,
        split_max_size: int | None = None,
        importance: ImportanceMatrix | None = None,
        settings: RuntimeSettings | None = None,
    ) -> Package:
        """The model's file, or files; one for its encoder of pictures, where it has one; and a Modelfile."""
        own = sum(not tensor.in_encoder for tensor in tensors)  # they are the first
        text = package(
            model,
            tensors[:own],
            encodings[:own],
            file_name=file_name,
            recipe=recipe,
            split_max_size=split_max_size,
            importance=importance,
            settings=settings,
        )
        made = text
        if own < len(tensors):
            made = with_projector(
                text, model, tensors[own:], encodings[own:], file_name=file_name, recipe=recipe
            )
        if settings is None or not settings.modelfile:
            return made
        parts = len(text.files) > 1
        return with_modelfile(made, model, file_name, context=settings.context, parts=parts)


def open_checkpoint(path: Path, companions: Path | None = None) -> Checkpoint:
    """Opens a GGUF file, or all files of a split one (see `checkpoint.open_checkpoint`)."""
    from phiconv_formats.gguf import checkpoint

    return checkpoint.open_checkpoint(path, companions)
