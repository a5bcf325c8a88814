"""The folder, laid out in full before a weight is read: shards, their index, and the files around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phiconv import ir
from phiconv.errors import UnsupportedModelError
from phiconv_formats.folders.companions import companion_files, json_bytes
from phiconv_formats.huggingface.config import make_config
from phiconv_formats.shared.output import OutputFile, Package, Segment, Stream
from phiconv_formats.shared.safetensors import DTYPE_OF_ENCODING, lay_out
from phiconv_formats.shared.splitting import MOST_SHARDS, shard_names, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from phiconv.ir import Encoded, Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor, RuntimeSettings

__all__ = ["package"]

_SHARD = 5 * 10**9  # as save_pretrained splits
_METADATA = {"format": "pt"}  # without it, transformers 4 refuses the file
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor and what it is stored as."""

    output: OutputTensor
    encoding: Encoding
    dtype: str
    row_bytes: int

    @property
    def nbytes(self) -> int:
        return self.row_bytes * self.output.tensor.rows


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
    shards = split(entries, split_max_size or _SHARD, MOST_SHARDS)
    names = shard_names(len(shards))
    files, streams = [], []
    for name, shard in zip(names, shards, strict=True):
        layout = lay_out([(e.output.name, e.dtype, e.output.tensor.shape) for e in shard], _METADATA)
        files.append(OutputFile(name, layout.size, ((0, layout.head),)))
        for entry in shard:
            segment = Segment(name, layout.offsets[entry.output.name], entry.row_bytes)
            streams.append(Stream(entry.output.name, entry.output.tensor, entry.encoding, _pack, (segment,)))
    others = _other_files(model, recipe)
    if len(shards) > 1:
        weight_map = {e.output.name: n for n, shard in zip(names, shards, strict=True) for e in shard}
        total = {"total_size": sum(e.nbytes for e in entries)}
        others[_INDEX] = json_bytes({"metadata": total, "weight_map": dict(sorted(weight_map.items()))})
    small = [OutputFile(name, len(data), ((0, data),)) for name, data in others.items()]
    stale = ("model*.safetensors", _INDEX)
    return Package((*small, *files), tuple(streams), own_folder=True, stale=stale)


def _entry(output: OutputTensor, encoding: Encoding, model: Model) -> _Entry:
    dtype = DTYPE_OF_ENCODING.get(encoding)
    if dtype is None:
        raise UnsupportedModelError(
            f"safetensors has no type for {encoding.name}", path=model.path, at=f"tensor {output.name}"
        )
    row_bits = output.tensor.columns * encoding.bits_per_weight
    return _Entry(output, encoding, dtype, round(row_bits / 8))


def _other_files(model: Model, recipe: str) -> dict[str, bytes]:
    """Everything but the weights; config.json first, since without it nobody sees a model."""
    if model.hyperparameters is None:
        return {}
    return {"config.json": json_bytes(make_config(model, recipe)), **companion_files(model)}


def _pack(encoded: Encoded) -> tuple[NDArray[np.uint8], ...]:
    assert not isinstance(encoded, ir.Blocks)  # noqa: S101 - no block encoding has a dtype
    return (np.ascontiguousarray(encoded).reshape(-1).view(np.uint8),)
