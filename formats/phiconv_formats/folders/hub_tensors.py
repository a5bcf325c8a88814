"""The tensors of a checkpoint as the hub has them: fused where they are fused there, experts apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.errors import UnsupportedModelError
from phiconv.quantizers.joining import join
from phiconv_formats.shared.output import OutputTensor
from phiconv_formats.shared.safetensors import METADATA_KEY

if TYPE_CHECKING:
    from phiconv.ir.model import HubTensor, Model

__all__ = ["output_tensors"]


def output_tensors(model: Model) -> list[OutputTensor]:
    """The weights under the hub's names, layer by layer; a file of plain tensors keeps its own.

    Raises:
        UnsupportedModelError: A file of plain tensors has a name that the format cannot hold.
    """
    if model.architecture is not None:
        return [_joined(name, tensor, model) for name, tensor in model.hub.items()]
    if METADATA_KEY in model.stored:
        raise UnsupportedModelError(
            "a name that safetensors keeps for itself", path=model.path, at=f"tensor {METADATA_KEY}"
        )
    return [
        OutputTensor(
            name, tensor, None, tensor.encoding if isinstance(tensor.encoding, ir.RawEncoding) else None
        )
        for name, tensor in model.stored.items()
    ]


def _joined(name: str, wanted: HubTensor, model: Model) -> OutputTensor:
    parts = []
    for role, start, stop in wanted.rows:
        tensor = model.tensors[role]
        matrix = tensor.reshape((tensor.rows, tensor.columns)) if len(tensor.shape) > 1 else tensor
        parts.append(matrix.slice_rows(start, stop))
    return OutputTensor(name, join(parts).reshape(wanted.shape), wanted.rows[0].role)
