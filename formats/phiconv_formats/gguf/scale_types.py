"""Scales that were bfloat16 before a GGUF had them as float16: a key of the file names their tensors.

So blocks of folders for servers come back as they were. Only symmetric blocks are concerned: other ones are
not taken over with scales of another type (see `phiconv.quantizers.repack`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf.constants import GGUFValueType

from phiconv import ir
from phiconv_formats.gguf.entries import Entries
from phiconv_formats.gguf.types import WITH_BF16_SCALES
from phiconv_formats.gguf.values import GgufValue
from phiconv_formats.shared.rows import NarrowScales

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from phiconv_formats.shared.output import OutputTensor

__all__ = ["BF16_SCALES", "scale_types", "with_scale_types"]

BF16_SCALES = "phiconv.bf16_scales"
"""The key: names of tensors."""


def scale_types(
    tensors: Sequence[OutputTensor], encodings: Sequence[ir.Encoding]
) -> list[tuple[str, GgufValue]]:
    """The key of a file, if one of its tensors has such scales.

    Args:
        tensors: What will be stored.
        encodings: In which encoding, tensor by tensor.
    """
    names = [t.name for t, e in zip(tensors, encodings, strict=True) if _narrowed(t.tensor.encoding, e)]
    value = GgufValue(GGUFValueType.ARRAY, names, GGUFValueType.STRING)
    return [(BF16_SCALES, value)] if names else []


def _narrowed(stored: ir.Encoding, encoding: ir.Encoding) -> bool:
    """Whether symmetric blocks with scales of bfloat16 are taken over with scales of float16."""
    if not isinstance(stored, ir.BlockEncoding) or stored.scale_type != ir.BF16:
        return False
    symmetric = not stored.has_minimum and not stored.has_zero_point
    plain = {*WITH_BF16_SCALES, *WITH_BF16_SCALES.values()}
    whole = stored.block_size % encoding.block_size == 0
    return symmetric and encoding in plain and whole and stored.bits == getattr(encoding, "bits", 0)


def with_scale_types(
    tensors: Mapping[str, ir.Tensor], metadata: Mapping[str, GgufValue], path: Path
) -> dict[str, ir.Tensor]:
    """The tensors of a file; those that the key names have scales of bfloat16, which reading checks.

    A name is passed over that no tensor with such blocks has: tools that requantize a file keep its keys.

    Raises:
        ConfigError: The key is no array of strings.
    """
    named = set(Entries(metadata, path).texts(BF16_SCALES) or ())
    return {name: _marked(tensor) if name in named else tensor for name, tensor in tensors.items()}


def _marked(tensor: ir.Tensor) -> ir.Tensor:
    encoding = WITH_BF16_SCALES.get(tensor.encoding)
    if encoding is None:
        return tensor
    runs = (replace(run, source=NarrowScales(run.source, encoding)) for run in tensor.runs)
    return replace(tensor, runs=tuple(runs))
