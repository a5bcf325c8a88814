"""Opening a model: a reader finds the tensors, an architecture says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phiconv import architectures
from phiconv.architectures.config import Config
from phiconv.errors import MissingFileError, UsageError
from phiconv.ir.model import Model
from phiconv_formats import find_reader
from phiconv_formats.recognition import what_is_missing

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["expanded", "open_model"]


def expanded(path: str | PathLike[str]) -> Path:
    """A path with ``~`` for the home folder, as a shell has it, which does not see what is in quotes."""
    plain = Path(path)
    try:
        return plain if plain.exists() else plain.expanduser()
    except (OSError, RuntimeError):  # a name that is too long, or nobody's home
        return plain


def _companions(path: Path) -> Path:
    """The folder that is given for its config.json, which may be given itself."""
    folder = path.parent if path.name == "config.json" else path
    if not folder.exists():
        message, hint = what_is_missing(folder)
        raise MissingFileError(message, path=folder, hint=hint)
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            "no config.json there", path=folder, hint="--config takes a folder that has one"
        )
    return folder


def open_model(
    path: str | PathLike[str], *, config: str | PathLike[str] | None = None, plain: bool = False
) -> Model:
    """Opens a model without reading its weights.

    Only a head that is stored although config.json says that it is the embedding (``tie_word_embeddings``) is
    compared with that, and kept where it is another matrix.

    Args:
        path: A model folder, a file of weights (``.safetensors``, ``.bin``, ``.pt``, ``.pth``; its
            siblings are found), an index of shards, a ``.gguf``, an ``.onnx``, an OpenVINO ``.xml``.
        config: A folder with config.json and the tokenizer's files, where they are not with the weights.
        plain: Take it for plain tensors, whatever it is.

    Returns:
        The model. A file of weights without config.json, and a GGUF of an architecture that phiconv does not
        know, is a file of plain tensors: ``architecture`` is None and ``tensors`` is empty, while ``stored``
        has every tensor.

    Raises:
        MissingFileError: There is nothing there, or a part of it is missing.
        MalformedFileError, ConfigError: A file does not follow its format, or does not fit the others.
        UnsafePickleError: A PyTorch file that asks for more than tensors; nothing was run.
        UnsupportedModelError: A kind of model or file that phiconv does not read.
        UsageError: ``config`` for what needs none.
    """
    path = expanded(path)
    if plain and config is not None:
        raise UsageError("--plain contradicts --config", hint="give one of them")
    found = find_reader(path)(path, None if config is None else _companions(expanded(config)))
    if found.config is None or plain:
        return Model(path, found.format, found.stored, metadata=found.metadata)
    keys = Config(found.config, found.config_path)
    architecture = architectures.find(keys)
    hyperparameters = architecture.parse(keys)
    named = found.stored if found.tensors is None else found.tensors
    hyperparameters, tensors = architectures.read_weights(
        architecture, hyperparameters, named, path, found.config
    )
    return Model(
        path=path,
        format=found.format,
        stored=found.stored,
        architecture=architecture.name,
        hyperparameters=hyperparameters,
        tensors=tensors,
        tokenizer=found.read_tokenizer(hyperparameters.vocab_size),
        card=found.card,
        metadata=found.metadata,
        hub=architectures.hub_tensors(architecture, hyperparameters, tensors),
        forward=architecture.forward,
    )
