"""The tensors of an adapter: what is added to which module, and what stands for the model's own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from phiconv.errors import MalformedFileError, MissingFileError, UnsupportedModelError, printable
from phiconv.ir import FloatEncoding
from phiconv.ir.adapter import Adapter, LowRank
from phiconv_formats.peft.config import parse
from phiconv_formats.pytorch import open_pytorch
from phiconv_formats.recognition import is_there, only_adapter, what_is_missing
from phiconv_formats.shared.safetensors import open_safetensors
from phiconv_formats.shared.strict_json import load_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from phiconv.ir import Tensor
    from phiconv_formats.peft.config import LoraConfig

__all__ = ["adapter_folder", "open_adapter"]

_CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_CONFIG_LIMIT = 16 << 20
_MAX_RANK = 1 << 16

_PREFIX = "base_model.model."
_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "embedding_a",
    "lora_embedding_B": "embedding_b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_PART = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _PARTS))})")
_WHOLE = re.compile(r"(.+?)(?:\.base_layer)?\.(weight|bias)")


@dataclass(slots=True)
class _Module:
    """The tensors of a module, by what they are."""

    parts: dict[str, Tensor] = field(default_factory=dict)


def adapter_folder(path: Path) -> Path | None:
    """The folder of an adapter that a path is, or is a file of; None where it is none, or also a model.

    Raises:
        InputError: There can be nothing, see `recognition.is_there`.
    """
    if not is_there(path):
        return None
    named = path.is_file() and path.name in (_CONFIG, *_FILES)
    folder = path.parent if named else path
    if not (folder / _CONFIG).is_file() or not any((folder / name).exists() for name in _FILES):
        return None
    return folder if named or only_adapter(folder) else None


def open_adapter(path: Path) -> Adapter:
    """Opens an adapter without reading its weights.

    Args:
        path: Its folder, or a file in it.

    Raises:
        MissingFileError: A file of it is not there.
        UnsupportedModelError: What cannot be merged exactly, by its key.
        MalformedFileError, ConfigError: A file that does not follow its format, or contradicts another.
    """
    if not is_there(path):
        message, hint = what_is_missing(path)
        raise MissingFileError(message, path=path, hint=hint)
    folder = path.parent if path.is_file() else path
    config_path = folder / _CONFIG
    if not config_path.exists():
        raise MissingFileError(
            f"no {_CONFIG} there", path=path, hint="give the folder of an adapter, as PEFT saves it"
        )
    values = load_json_object(config_path, limit=_CONFIG_LIMIT)
    config = parse(values, config_path)
    file = next((folder / name for name in _FILES if (folder / name).exists()), None)
    if file is None:
        raise MissingFileError(f"no {_FILES[0]} in this folder", path=folder, hint="download it")
    archive = (open_safetensors if file.suffix == ".safetensors" else open_pytorch)(file)
    modules, replaced = _sorted(archive.tensors, file)
    config.check_modules(modules, file)
    changes = {name: _low_rank(name, found.parts, config, file) for name, found in modules.items()}
    if not changes and not replaced:
        raise MalformedFileError("holds no tensors", path=file, hint="download it again")
    for name in config.modules_to_save:
        if not any(f".{name}." in f".{found}" for found in replaced):
            raise MalformedFileError(
                f"{_CONFIG} says that {printable(name, 80)} is saved as a whole, and no such tensor is here",
                path=file,
                hint="save the adapter again",
            )
    return Adapter(folder, file, archive.tensors, changes, replaced, config.alpha, values)


def _sorted(tensors: Mapping[str, Tensor], file: Path) -> tuple[dict[str, _Module], dict[str, Tensor]]:
    """The parts of every module, and what is whole."""
    modules: dict[str, _Module] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not isinstance(tensor.encoding, FloatEncoding):
            raise _malformed(file, key, f"is stored as {tensor.encoding.name}, and not in floats")
        name = key.removeprefix(_PREFIX)
        match = _PART.fullmatch(name)
        if match is not None and name != key:
            parts = modules.setdefault(match[1], _Module()).parts
            if parts.setdefault(_PARTS[match[2]], tensor) is not tensor:
                raise _malformed(file, key, "is there twice")
            continue
        match = _WHOLE.fullmatch(name)
        if match is None or name == key or "lora_" in name or "modules_to_save" in name:
            raise UnsupportedModelError(
                "is no part of a LoRA that phiconv merges",
                path=file,
                at=f"tensor {printable(key)}",
                hint="merge it by PEFT itself",
            )
        if whole.setdefault(f"{match[1]}.{match[2]}", tensor) is not tensor:
            raise _malformed(file, key, "is there twice")
    return modules, whole


def _low_rank(module: str, parts: Mapping[str, Tensor], config: LoraConfig, file: Path) -> LowRank:
    """The product of a module."""
    embedding = "embedding_a" in parts or "embedding_b" in parts
    names = {"embedding_a", "embedding_b"} if embedding else {"a", "b"}
    magnitude = parts.get("magnitude")
    if {*parts} - {"magnitude"} != names:
        raise _malformed(file, module, "has not one A and one B")
    if config.dora != (magnitude is not None):
        raise _malformed(file, module, f"use_dora is {config.dora}, which the tensors contradict")
    if embedding and magnitude is not None:
        raise UnsupportedModelError(
            "DoRA of an embedding cannot be merged", path=file, at=f"module {printable(module)}"
        )
    a, b = (parts[name] for name in sorted(names))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not (a.size and b.size):
        raise _malformed(file, module, f"A of {list(a.shape)} and B of {list(b.shape)} have no product")
    if magnitude is not None and magnitude.shape != b.shape[:1]:
        raise _malformed(file, module, f"{list(magnitude.shape)} lengths for {b.shape[0]} rows")
    rank = a.shape[0]
    if rank != config.rank(module) or rank > _MAX_RANK:
        raise _malformed(file, module, f"is of rank {rank}, and {_CONFIG} says {config.rank(module)}")
    return LowRank(a, b, config.scale(module, rank), magnitude, transposed=embedding)


def _malformed(file: Path, name: str, message: str) -> MalformedFileError:
    return MalformedFileError(message, path=file, at=f"module {printable(name)}", hint="save it again")
