"""An MLX folder, laid out in full before a weight is read.

Weights in shards of at most 5 GiB, each a safetensors file with aligned arrays; their index, config.json,
tokenizer files, a model card.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv._version import __version__
from phiconv.ir.model import title_of
from phiconv_formats.folders.companions import companion_files
from phiconv_formats.folders.shards import INDEX, Entry, Part, lay_out_shards
from phiconv_formats.mlx.config import check_model, make_config, quantization_of, runtime_notes
from phiconv_formats.mlx.packing import pack, row_bytes
from phiconv_formats.mlx.vision import vision_files
from phiconv_formats.shared.safetensors import DTYPE_OF_ENCODING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.folders.shards import Shards
    from phiconv_formats.shared.output import OutputTensor, Package, RuntimeSettings

__all__ = ["package"]

_SHARD = 5 << 30
_METADATA = {"format": "mlx"}


def package(
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,  # noqa: ARG001 - the files of a folder have names of their own
    recipe: str,
    split_max_size: int | None = None,
    importance: ImportanceMatrix | None = None,  # noqa: ARG001 - nothing here weighs errors
    settings: RuntimeSettings | None = None,  # noqa: ARG001 - the file has no place for them
) -> Package:
    """Lays the whole output out; see `phiconv_formats.Writer`.

    Raises:
        UnsupportedModelError: A model that mlx-lm cannot run.
        UsageError: A split size that would make too many files.
    """
    check_model(model)
    entries = [Entry(t, e, tuple(_parts(t, e))) for t, e in zip(tensors, encodings, strict=True)]
    shards = lay_out_shards(entries, split_max_size or _SHARD, _METADATA, pack)
    others = _other_files(model, entries, shards, recipe)
    return shards.package(others, (*runtime_notes(model), *_notes(entries)))


def _parts(tensor: OutputTensor, encoding: Encoding) -> Iterator[Part]:
    """The arrays that store a tensor, with mlx's names, types and shapes."""
    shape = tensor.tensor.shape
    sizes = row_bytes(encoding, tensor.tensor.columns)
    if isinstance(encoding, ir.FloatEncoding):
        yield Part(tensor.name, DTYPE_OF_ENCODING[encoding], shape, sizes[0])
        return
    path = tensor.name.removesuffix(".weight")
    scale_type = DTYPE_OF_ENCODING[encoding.scale_type] if isinstance(encoding, ir.BlockEncoding) else "U8"
    widths = {"U32": 4, "U8": 1, "F16": 2, "BF16": 2, "F32": 4}
    named = zip(("weight", "scales", "biases"), ("U32", scale_type, scale_type), sizes, strict=False)
    for name, dtype, size in named:
        yield Part(f"{path}.{name}", dtype, (*shape[:-1], size // widths[dtype]), size)


def _other_files(model: Model, entries: Sequence[Entry], shards: Shards, recipe: str) -> dict[str, bytes]:
    """Everything but the weights; config.json first, since without it a runtime sees no model."""
    vectors = [e.encoding for e in entries if len(e.output.tensor.shape) == 1]
    dtype = vectors[0]
    assert isinstance(dtype, ir.FloatEncoding)  # noqa: S101 - vectors are never quantized
    matrices = {
        e.output.name.removesuffix(".weight"): e.encoding
        for e in entries
        if len(e.output.tensor.shape) > 1 and _can_be_quantized(e)
    }
    parameters = sum(e.output.tensor.size for e in entries)
    # As mlx-lm writes it: four spaces, nothing behind the last bracket.
    config = json.dumps(make_config(model, dtype, matrices), indent=4).encode()
    return {
        "config.json": config,
        INDEX: shards.index(indent=4, total_parameters=parameters),
        "README.md": _model_card(model, recipe).encode(),
        **companion_files(model),
        **({} if model.senses is None else vision_files(model.senses)),
    }


def _can_be_quantized(entry: Entry) -> bool:
    return entry.output.name.endswith(".weight")


def _notes(entries: Sequence[Entry]) -> list[str]:
    """Matrices that stayed floats where others were quantized."""
    if not any(quantization_of(e.encoding) for e in entries):
        return []
    kept = [
        e.output
        for e in entries
        if isinstance(e.encoding, ir.FloatEncoding)
        and len(e.output.tensor.shape) > 1
        and not e.output.in_encoder
    ]
    if not kept:
        return []
    columns = sorted({t.tensor.columns for t in kept})
    what = f"{len(kept)} matrices stay unquantized, the first is {kept[0].name}"
    why = f"rows of {', '.join(map(str, columns))} weights"
    return [f"{what}: {why} do not divide into groups, or --tensor-type says so"]


def _model_card(model: Model, recipe: str) -> str:
    task, package, options = "text-generation", "mlx-lm", "--prompt 'Hello'"
    if model.senses is not None:
        task, package, options = "image-text-to-text", "mlx-vlm", "--image photo.jpg --prompt 'What is this?'"
    name = title_of(model.path)
    weights = sum(math.prod(t.shape) for t in model.stored.values())
    return (
        "---\n"
        f"language: en\nlibrary_name: mlx\npipeline_tag: {task}\ntags:\n- mlx\n- phiconv\n"
        "---\n\n"
        f"# {name}, {recipe} for MLX\n\n"
        f"Converted from `{name}` ({weights:,} parameters) by phiconv {__version__}, recipe `{recipe}`.\n\n"
        f"```sh\npip install {package}\n{package.replace('-', '_')}.generate --model . {options}\n```\n"
    )
