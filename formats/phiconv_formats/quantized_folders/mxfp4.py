"""Stacks of experts in MXFP4, as gpt-oss has them.

    NAME_blocks  U8 [experts, rows, in / 32, 16]  E2M1, the first of two in the lower half of a byte
    NAME_scales  U8 [experts, rows, in / 32]      E8M0

Everything else in such a folder is not quantized. Source: transformers 5.24 (``integrations/mxfp4.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from phiconv.errors import MalformedFileError
from phiconv.ir.hub_encodings import HUB_MXFP4
from phiconv_formats.quantized_folders.arrays import Bundle, checked
from phiconv_formats.quantized_folders.matrices import Together, as_matrix
from phiconv_formats.quantized_folders.small_floats import mxfp4_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv import ir
    from phiconv.ir.model import Checkpoint
    from phiconv_formats.quantized_folders.arrays import Arrays

__all__ = ["assemble"]

_BLOCKS, _SCALES = "_blocks", "_scales"
ARRAYS: Arrays = {_BLOCKS: ("u8",), _SCALES: ("u8",)}


def assemble(folder: Checkpoint, quantization: Mapping[str, Any]) -> Checkpoint:  # noqa: ARG001
    """The folder with its stacks put together.

    Raises:
        MalformedFileError: Arrays that do not fit each other.
    """
    stacks = {name.removesuffix(_BLOCKS) for name in folder.stored if name.endswith(_BLOCKS)}
    result: dict[str, ir.Tensor] = {}
    for name, tensor in folder.stored.items():
        base = name.removesuffix(_BLOCKS).removesuffix(_SCALES)
        if base not in stacks or base == name:
            if base in stacks:
                message = "is stored twice, quantized and not"
                raise MalformedFileError(message, path=folder.path, at=f"tensor {name}")
            result[name] = tensor
        elif base not in result:
            arrays = {end: folder.stored[base + end] for end in ARRAYS if base + end in folder.stored}
            result[base] = _stack(checked(Bundle(base, arrays, folder.path, ""), ARRAYS))
    return replace(folder, stored=result, tensors=None)


def _stack(bundle: Bundle) -> ir.Tensor:
    experts, rows, groups, _ = bundle.matrix(_BLOCKS, rank=4)
    size = HUB_MXFP4.block_size
    bundle.expect(**{_BLOCKS: (experts, rows, groups, size // 2), _SCALES: (experts, rows, groups)})
    parts = (Together(bundle[_BLOCKS], groups), bundle[_SCALES])
    return as_matrix(HUB_MXFP4, (experts, rows, groups * size), parts, mxfp4_numbers)
