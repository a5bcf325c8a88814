"""A Hugging Face folder: config.json, weights in safetensors, tokenizer files, generation_config.json.

An MLX folder looks the same from outside; what its tensors are tells it apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.errors import MissingFileError, UnsupportedModelError
from phiconv.model import Checkpoint, ModelCard
from phiconv_formats.mlx.reader import as_checkpoint, is_mlx
from phiconv_formats.safetensors import open_safetensors, open_sharded
from phiconv_formats.strict_json import load_json_object
from phiconv_formats.tokenizer_files import read_tokenizer

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from phiconv.tokenizer import Tokenizer

__all__ = ["open_checkpoint"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CONFIG_LIMIT = 16 << 20


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a model folder, one of its ``.safetensors`` files, or its index.

    A shard stands for the whole checkpoint: its index is found beside it. A file without config.json beside
    it is a file of plain tensors.

    Raises:
        MissingFileError: A folder without weights or without config.json.
        UnsupportedModelError: A folder that holds weights in another format only.
        MalformedFileError: Any file that does not follow its format.
    """
    folder = path if path.is_dir() else path.parent
    weights = _find_weights(path)
    config_path = folder / "config.json"
    if path.is_dir() and not config_path.exists():
        raise MissingFileError(
            "no config.json in this folder",
            path=path,
            hint="give the .safetensors file itself to convert plain tensors",
        )
    archive = open_sharded(weights) if weights.name.endswith(".index.json") else open_safetensors(weights)
    config = _optional_json(config_path)
    if config is None:
        return Checkpoint(path, "safetensors", archive.tensors, metadata=archive.metadata)

    def tokenizer(vocab_size: int) -> Tokenizer | None:
        return read_tokenizer(folder, vocab_size=vocab_size, config=config)

    card = ModelCard(folder, config, _optional_json(folder / "generation_config.json") or {})
    checkpoint = Checkpoint(
        path, "safetensors", archive.tensors, config, config_path, tokenizer, card, archive.metadata
    )
    return as_checkpoint(checkpoint) if is_mlx(archive.tensors, archive.metadata) else checkpoint


def _find_weights(path: Path) -> Path:
    """The single file or the index to open."""
    if path.is_dir():
        for name in (_SINGLE, _INDEX):
            if (path / name).exists():
                return path / name
        candidates = sorted(p for p in path.glob("*.safetensors") if not p.name.startswith("."))
        if len(candidates) == 1:
            return candidates[0]
        if any(path.glob("*.bin")) or any(path.glob("*.pt*")):
            raise UnsupportedModelError(
                "only PyTorch weights in this folder, which are not supported yet",
                path=path,
                hint="save them again as .safetensors",
            )
        found = (
            f"{len(candidates)} .safetensors files, but neither {_SINGLE} nor {_INDEX}"
            if candidates
            else "no .safetensors file"
        )
        raise MissingFileError(f"{found} in this folder", path=path, hint="the download may be incomplete")
    index = path.parent / _INDEX
    if path.suffix == ".safetensors" and path.name != _SINGLE and index.exists():
        shards = load_json_object(index, limit=256 << 20).get("weight_map")
        if isinstance(shards, dict) and path.name in shards.values():
            return index
    return path


def _optional_json(path: Path) -> dict[str, Any] | None:
    return load_json_object(path, limit=_CONFIG_LIMIT) if path.exists() else None
