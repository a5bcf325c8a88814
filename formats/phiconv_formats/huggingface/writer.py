"""The folder, laid out in full before a weight is read: shards, their index, and the files around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir
from phiconv.errors import UnsupportedModelError
from phiconv_formats.folders.companions import companion_files, json_bytes
from phiconv_formats.folders.hub_config import make_config
from phiconv_formats.folders.shards import INDEX, Entry, Part, lay_out_shards
from phiconv_formats.shared.safetensors import DTYPE_OF_ENCODING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from phiconv.ir import Encoded, Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor, Package, RuntimeSettings

__all__ = ["package"]

_SHARD = 5 * 10**9  # as save_pretrained splits
_METADATA = {"format": "pt"}  # without it, transformers 4 refuses the file


def package(
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,  # noqa: ARG001 - the files of a folder have names of their own
    recipe: str,
    split_max_size: int | None = None,
    importance: ImportanceMatrix | None = None,  # noqa: ARG001 - nothing here weighs errors
    settings: RuntimeSettings | None = None,  # noqa: ARG001 - no runtime is asked
) -> Package:
    """Lays the whole output out; see `phiconv_formats.Writer`.

    Raises:
        UnsupportedModelError: A type that safetensors does not have.
        UsageError: A split size that would make too many files.
    """
    entries = [_entry(t, e, model) for t, e in zip(tensors, encodings, strict=True)]
    shards = lay_out_shards(entries, split_max_size or _SHARD, _METADATA, _pack)
    others = _other_files(model, recipe)
    if len(shards.files) > 1:
        others[INDEX] = shards.index()
    return shards.package(others)


def _entry(output: OutputTensor, encoding: Encoding, model: Model) -> Entry:
    dtype = DTYPE_OF_ENCODING.get(encoding)
    if dtype is None:
        raise UnsupportedModelError(
            f"safetensors has no type for {encoding.name}", path=model.path, at=f"tensor {output.name}"
        )
    row_bits = output.tensor.columns * encoding.bits_per_weight
    return Entry(output, encoding, (Part(output.name, dtype, output.tensor.shape, round(row_bits / 8)),))


def _other_files(model: Model, recipe: str) -> dict[str, bytes]:
    """Everything but the weights; config.json first, since without it nobody sees a model."""
    if model.hyperparameters is None:
        return {}
    return {"config.json": json_bytes(make_config(model, recipe)), **companion_files(model)}


def _pack(encoded: Encoded) -> tuple[NDArray[np.uint8], ...]:
    assert not isinstance(encoded, ir.Blocks)  # noqa: S101 - no block encoding has a dtype
    return (np.ascontiguousarray(encoded).reshape(-1).view(np.uint8),)
