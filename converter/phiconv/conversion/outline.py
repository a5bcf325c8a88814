"""A model whose weights are not there: what config.json and an index say is enough for a plan.

Shapes follow from the architecture, and names from the index, or else from what the family's checkpoints have
on the hub. So every size can be told before the download of the weights has begun.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Never

from phiconv import architectures
from phiconv.architectures.config import Config
from phiconv.architectures.multimodal import text_config
from phiconv.architectures.weights import table
from phiconv.conversion.paths import expanded
from phiconv.conversion.source import open_model
from phiconv.errors import ConfigError, MalformedFileError, MissingFileError
from phiconv.ir import BF16, F16, F32, Tensor
from phiconv.ir.model import Checkpoint, Model
from phiconv_formats.folders.model_folder import optional_json, with_folder
from phiconv_formats.shared.safetensors import load_index

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from os import PathLike
    from pathlib import Path

    from phiconv.architectures.architecture import Architecture
    from phiconv.ir import FloatEncoding
    from phiconv.ir.model import Hyperparameters

__all__ = ["is_outline", "open_outline"]

_CONFIG = "config.json"
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_DTYPES = {"bfloat16": BF16, "float16": F16, "float32": F32}
_MOST_TENSORS = 200_000


@dataclass(frozen=True, slots=True)
class _Absent:
    """A tensor of which only the name and the type are known."""

    label: str
    encoding: FloatEncoding

    def read(self, start: int, stop: int) -> Never:
        """Refuses: there is nothing to read."""
        raise MissingFileError("the weights are not there", path=self.label, hint=f"rows {start} to {stop}")

    def changed(self) -> bool:
        """No: what is not there does not change."""
        return False


def is_outline(model: Model) -> bool:
    """Whether a model has no weights behind it: it can be planned for, and not converted."""
    return any(isinstance(run.source, _Absent) for tensor in model.stored.values() for run in tensor.runs)


def open_outline(path: str | PathLike[str]) -> Model:
    """Opens a model, or what config.json says of one whose weights are not there.

    Args:
        path: What `open_model` takes; a folder with config.json and perhaps an index and a tokenizer; or a
            config.json of any name.

    Returns:
        The model. Of one without weights the tensors have shapes and types, and cannot be read; of one that
        sees or hears it is the language model alone.

    Raises:
        InputError: It is neither.
    """
    path = expanded(path)
    is_index = path.name.endswith(".index.json")
    if path.suffix == ".json" and not is_index and path.is_file():
        return _outline(path, path, ())
    try:
        return open_model(path)
    except MissingFileError:
        folder = path.parent if is_index else path
        if not folder.is_dir() or not (folder / _CONFIG).is_file():
            raise
        indices = [path] if is_index else [folder / name for name in _INDICES]
        names = next((_names(index) for index in indices if index.is_file()), ())
        return _outline(path, folder / _CONFIG, names)


def _names(index: Path) -> Collection[str]:
    """The tensors that an index names, wherever they are."""
    names = load_index(index).get("weight_map")
    if not isinstance(names, dict):
        raise MalformedFileError("no object of names", path=index, at="weight_map", hint="download it again")
    return names


def _outline(path: Path, config_path: Path, names: Collection[str]) -> Model:
    values = optional_json(config_path)
    assert values is not None  # noqa: S101 - the file is there
    config = Config(values, config_path)
    architecture = architectures.find(config)
    kind = architectures.find_multimodal(config)
    hyperparameters = architecture.parse(config)
    dtype = _DTYPES.get(str(values.get("torch_dtype") or values.get("dtype")), BF16)
    stored = {
        name: Tensor.of(_Absent(f"{path}: {name}", dtype), shape)
        for name, shape in _shapes(architecture, hyperparameters, config, names)
    }
    hyperparameters, tensors = architectures.read_weights(architecture, hyperparameters, stored, path, values)
    found = with_folder(Checkpoint(path, "safetensors", stored), config_path, values)
    card = replace(found.card, config=text_config(kind, found.card.config)) if kind else found.card
    is_folder = config_path.name == _CONFIG  # else the files beside it may be another model's
    return Model(
        path=path,
        format="safetensors",
        stored=stored,
        architecture=architecture.name,
        hyperparameters=hyperparameters,
        tensors=tensors,
        tokenizer=found.read_tokenizer(hyperparameters.vocab_size) if is_folder else None,
        card=card if is_folder else replace(card, folder=None, generation={}, preprocessor={}),
        hub=architectures.hub_tensors(architecture, hyperparameters, tensors),
        forward=architecture.forward,
        left_out="sizes are of the language model alone" if kind else "",
    )


def _shapes(
    architecture: Architecture, hp: Hyperparameters, config: Config, names: Collection[str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that the checkpoint has.

    A bias that is optional is there where the index names it; without an index, where config.json says so.
    """
    said = {
        role for key, roles in architecture.bias_keys.items() if config.get(key)[1] is True for role in roles
    }
    found: dict[str, tuple[int, ...]] = {}
    for weight in table(architecture, hp, names):
        if weight.optional and not (weight.pieces[0].name in names if names else weight.role.name in said):
            continue
        found |= {piece.name: piece.shape for piece in weight.pieces}
        if len(found) > _MOST_TENSORS:
            raise ConfigError(f"more than {_MOST_TENSORS} tensors", path=config.path, at="num_hidden_layers")
    yield from found.items()
