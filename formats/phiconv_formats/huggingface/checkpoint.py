"""A Hugging Face folder: config.json, weights, tokenizer files, generation_config.json.

The weights are in safetensors or, in older folders, in PyTorch's own format. An MLX folder looks the same
from outside; what its tensors are tells it apart. So does a folder that another tool has quantized, whose
config.json says so (`quantized`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from phiconv.errors import InputError, MissingFileError, UnsupportedModelError, printable
from phiconv.ir.findings import keeping
from phiconv.ir.model import Checkpoint
from phiconv_formats.folders.model_folder import optional_json, whatever_is_there, with_folder
from phiconv_formats.huggingface.quantized import assembled, is_named
from phiconv_formats.mlx.reader import as_checkpoint, is_mlx
from phiconv_formats.pytorch import open_pytorch, open_pytorch_sharded
from phiconv_formats.recognition import NO_WEIGHTS, format_of_content, only_adapter, what_folder_is
from phiconv_formats.shared.safetensors import load_index, open_safetensors, open_sharded

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["open_checkpoint"]

_ADAPTER = "adapter_config.json"
_INDEX = ".index.json"

# Where a folder's weights are, the best first: a usual name, or the only file that a pattern fits.
_USUAL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "*.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "*.bin",
    "*.pth",
    "*.pt",
)

# Weights of other formats, or one state of many, which are given as files; an .xml has its own in a .bin.
_OTHER_FORMATS = {".gguf", ".onnx", ".xml", ".ckpt"}


def open_checkpoint(path: Path, companions: Path | None = None) -> Checkpoint:
    """Opens a model folder, one of its weight files, or its index.

    A shard stands for the whole checkpoint: its index is found beside it. A file without config.json beside
    it, or in ``companions``, is a file of plain tensors.

    Raises:
        MissingFileError: A folder without weights or without config.json.
        InputError: The .bin of an OpenVINO model.
        UnsafePickleError: A PyTorch file that asks for more than tensors.
        UnsupportedModelError: A PyTorch file in a form that phiconv does not read, or an adapter.
        MalformedFileError: Any file that does not follow its format.
    """
    folder = path if path.is_dir() else path.parent
    config_path = (companions or folder) / "config.json"
    with keeping(lambda found: whatever_is_there(found, path, config_path, "safetensors")):
        return _open(path, folder, config_path)


def _open(path: Path, folder: Path, config_path: Path) -> Checkpoint:
    if (folder / _ADAPTER).exists():
        with keeping(lambda _: _opened(_file(path), path)):
            raise _adapter_error(path, folder)
    weights = _file(path)
    if path.is_dir() and not config_path.exists():
        with keeping(lambda _: _opened(weights, path)):
            _refuse_other_kinds(path)
            raise MissingFileError(
                "no config.json in this folder",
                path=path,
                hint="put it there, or give --config and a folder that has it",
            )
    checkpoint = _opened(weights, path)
    with keeping(lambda _: checkpoint):
        config = optional_json(config_path)
        if config is None:
            return checkpoint
        whole = with_folder(checkpoint, config_path, config)
        theirs = "quantization" in config or not is_named(whole)
        mlx = theirs and is_mlx(checkpoint.stored, checkpoint.metadata)
        return as_checkpoint(whole) if mlx else assembled(whole)


def _file(path: Path) -> Path:
    """The file of weights that a path stands for, or the index of several."""
    return _in_folder(path) if path.is_dir() else _whole(path)


def _opened(weights: Path, path: Path) -> Checkpoint:
    """The tensors of a file or an index, by themselves."""
    name = weights.name.removesuffix(_INDEX)
    content = format_of_content(weights) if name == weights.name else ""
    safe = content == "safetensors" or (not content and name.lower().endswith(".safetensors"))
    kind = "safetensors" if safe else "pytorch"
    with keeping(lambda found: replace(found or Checkpoint(path, kind, {}), path=path, format=kind)):
        if name == weights.name:
            archive = (open_safetensors if safe else open_pytorch)(weights)
        else:
            archive = (open_sharded if safe else open_pytorch_sharded)(weights)
    return Checkpoint(path, kind, archive.tensors, metadata=archive.metadata)


def _adapter_error(path: Path, folder: Path) -> UnsupportedModelError:
    """What to say of an adapter's folder: libraries apply it to the model, wherever that is."""
    base = (optional_json(folder / _ADAPTER) or {}).get("base_model_name_or_path")
    of = f" of {printable(base, 80)}" if isinstance(base, str) and base else ""
    if only_adapter(folder):
        return UnsupportedModelError(
            f"this is an adapter{of}, and no whole model",
            path=path,
            at=_ADAPTER,
            hint="give --base and the model, to merge it; or give the model, and the adapter as --lora",
        )
    return UnsupportedModelError(
        f"an adapter{of} lies beside these weights, and would be ignored",
        path=path,
        at=_ADAPTER,
        hint="put it into a folder of its own, and give that as --lora",
    )


def _in_folder(folder: Path) -> Path:
    """The single file, or the index, of a folder's weights."""
    several = ""
    for pattern in _USUAL:
        found = sorted(p for p in folder.glob(pattern) if _may_be_weights(p))
        if len(found) == 1:
            return found[0]
        if found and not several:
            several = f"{len(found)} {pattern.removeprefix('*')} files, and no index of them"
    if not several:
        _refuse_other_kinds(folder)
    message = f"{several or 'no .safetensors file'} in this folder"
    others = sorted(p.name for p in folder.iterdir() if p.suffix in _OTHER_FORMATS)
    hint = (
        f"to read {printable(others[0], 80)}, give that file" if others else "the download may be incomplete"
    )
    raise MissingFileError(message, path=folder, hint=hint)


def _refuse_other_kinds(folder: Path) -> None:
    """Says what a folder is that is no model's.

    Raises:
        MissingFileError: It is of a kind that can be told.
    """
    if (kind := what_folder_is(folder)) is not None:
        raise MissingFileError(kind.message, path=folder, hint=kind.hint)


def _may_be_weights(path: Path) -> bool:
    return not (path.name.startswith(".") or path.name in NO_WEIGHTS or _openvino_document(path))


def _openvino_document(path: Path) -> Path | None:
    """The .xml that a file is the .bin of."""
    beside = (path.with_suffix(end) for end in (".xml", ".XML"))
    return next((p for p in beside if p.exists()), None) if path.suffix.lower() == ".bin" else None


def _whole(path: Path) -> Path:
    """The file itself, or the index that it is a shard of."""
    if (document := _openvino_document(path)) is not None:
        hint = f"give {printable(document.name, 80)}"
        raise InputError("these are the weights of an OpenVINO model", path=path, hint=hint)
    for usual in ("model.safetensors", "pytorch_model.bin"):
        index = path.with_name(f"{usual}{_INDEX}")
        if (
            path.suffix == index.with_suffix("").with_suffix("").suffix
            and path.name != usual
            and index.exists()
        ):
            shards = load_index(index).get("weight_map")
            if isinstance(shards, dict) and path.name in shards.values():
                return index
    return path
