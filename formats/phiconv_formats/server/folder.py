"""What the quantized Hugging Face folders have in common: names, shards, config.json, and a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv._version import __version__
from phiconv.errors import UnsupportedModelError
from phiconv.ir.model import title_of
from phiconv_formats.folders import hub_tensors
from phiconv_formats.folders.companions import companion_files, json_bytes
from phiconv_formats.folders.hub_config import make_config
from phiconv_formats.folders.shards import INDEX, Entry, Part, lay_out_shards
from phiconv_formats.shared.safetensors import DTYPE_OF_ENCODING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor, Package

__all__ = ["entries_of", "lay_out", "output_tensors", "unquantized"]

_SHARD = 5 * 10**9  # as save_pretrained splits
_METADATA = {"format": "pt"}


def output_tensors(model: Model) -> list[OutputTensor]:
    """The weights under the hub's names: matrices that are fused there stay fused, experts are apart.

    Raises:
        UnsupportedModelError: A file of plain tensors.
    """
    if model.architecture is None:
        raise UnsupportedModelError(
            "a server cannot run plain tensors without a config.json",
            path=model.path,
            hint="give a model folder",
        )
    return hub_tensors.output_tensors(model)


def entries_of(
    tensors: Sequence[OutputTensor],
    encodings: Sequence[ir.Encoding],
    quantized: Callable[[OutputTensor, ir.Encoding], Entry],
) -> list[Entry]:
    """The arrays that store each tensor: floats as they are, the others in the format's own way."""
    return [
        _float(tensor, encoding) if isinstance(encoding, ir.FloatEncoding) else quantized(tensor, encoding)
        for tensor, encoding in zip(tensors, encodings, strict=True)
    ]


def _float(output: OutputTensor, encoding: ir.FloatEncoding) -> Entry:
    size = output.tensor.columns * encoding.dtype.itemsize
    part = Part(output.name, DTYPE_OF_ENCODING[encoding], output.tensor.shape, size)
    return Entry(output, encoding, (part,))


def unquantized(entries: Sequence[Entry]) -> list[str]:
    """The paths of linear layers whose matrices stay floats, but for the head."""
    return [
        entry.output.name.removesuffix(".weight")
        for entry in entries
        if isinstance(entry.encoding, ir.FloatEncoding)
        and len(entry.output.tensor.shape) > 1
        and (role := entry.output.role) is not None
        and role.name not in {"token_embedding", "output"}
    ]


def lay_out(
    model: Model,
    entries: Sequence[Entry],
    quantization: Mapping[str, Any],
    *,
    recipe: str,
    method: str,
    split_max_size: int | None,
    others: Mapping[str, bytes] | None = None,
) -> Package:
    """The whole folder.

    Args:
        model: The source.
        entries: Its tensors.
        quantization: What config.json says in ``quantization_config``; {} for none.
        recipe: Its name, for the model card.
        method: What the format is called there.
        split_max_size: Most bytes of tensors in one file.
        others: Further files.

    Raises:
        UsageError: A split size that would make too many files.
    """
    shards = lay_out_shards(entries, split_max_size or _SHARD, _METADATA, _pack)
    dtype = next(e.encoding.name for e in entries if isinstance(e.encoding, ir.FloatEncoding))
    config = make_config(model, dtype) | ({"quantization_config": dict(quantization)} if quantization else {})
    files = {
        "config.json": json_bytes(config),
        **companion_files(model),
        **(others or {}),
        "README.md": _model_card(model, recipe, method).encode(),
    }
    if len(shards.files) > 1:
        files[INDEX] = shards.index()
    return shards.package(files)


def _pack(encoded: ir.Encoded) -> tuple[NDArray[np.uint8], ...]:
    assert not isinstance(encoded, ir.Blocks)  # noqa: S101 - entries of blocks have their own way
    return (np.ascontiguousarray(encoded).reshape(-1).view(np.uint8),)


def _model_card(model: Model, recipe: str, method: str) -> str:
    name = title_of(model.path)
    return (
        f"---\nlanguage: en\npipeline_tag: text-generation\ntags:\n- {method}\n- phiconv\n---\n\n"
        f"# {name}, {recipe} in {method}\n\n"
        f"Converted from `{name}` by phiconv {__version__}, recipe `{recipe}`.\n\n"
        "```sh\npip install vllm\nvllm serve .\n```\n"
    )
