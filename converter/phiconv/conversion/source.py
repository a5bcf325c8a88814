"""Opening a model: a reader finds the tensors, an architecture says what they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phiconv import architectures
from phiconv.architectures.adapters import changes_by_role
from phiconv.architectures.config import Config
from phiconv.architectures.multimodal import TextPart, senses, text_config, text_part, text_stored
from phiconv.brief import Brief
from phiconv.conversion.adapters import merge
from phiconv.conversion.manifest import refuse_half_replaced
from phiconv.conversion.paths import expanded
from phiconv.errors import InputError, MissingFileError, UsageError
from phiconv.ir.adapter import Adapter
from phiconv.ir.findings import found_by, keeping, tolerated
from phiconv.ir.model import Checkpoint, Model
from phiconv_formats import find_reader
from phiconv_formats.peft import adapter_folder, open_adapter
from phiconv_formats.recognition import what_is_missing
from phiconv_formats.shared.files import noting_files, unnoted_files
from phiconv_formats.tokenizers.folder import MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

    from phiconv.conversion.adapters import Lora
    from phiconv.ir.model import Hyperparameters
    from phiconv.ir.senses import Senses
    from phiconv.tokenization.tokenizer import Tokenizer

__all__ = ["Examination", "examine", "open_model"]


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
    path: str | PathLike[str],
    *,
    config: str | PathLike[str] | None = None,
    plain: bool = False,
    lora: Sequence[Lora] = (),
    base: str | PathLike[str] | None = None,
    text_only: bool = False,
) -> Model:
    """Opens a model without reading its weights.

    Only a head that is stored although config.json says that it is the embedding (``tie_word_embeddings``) is
    compared with that, and kept where it is another matrix.

    Args:
        path: A model folder, a file of weights (``.safetensors``, ``.bin``, ``.pt``, ``.pth``; its
            siblings are found), an index of shards, a ``.gguf``, an ``.onnx``, an OpenVINO ``.xml``.
        config: A folder with config.json and the tokenizer's files, where they are not with the weights.
        plain: Take it for plain tensors, whatever it is.
        lora: Adapters to merge into it, see `phiconv.merge`.
        base: The model, where ``path`` is an adapter to merge into it.
        text_only: Of a model that sees or hears the language model alone; the encoders are not looked at.

    Returns:
        The model. A file of weights without config.json, and a GGUF of an architecture that phiconv does not
        know, is a file of plain tensors: ``architecture`` is None and ``tensors`` is empty, while ``stored``
        has every tensor.

    Raises:
        MissingFileError: There is nothing there, or a part of it is missing.
        MalformedFileError, ConfigError: A file does not follow its format, or does not fit the others; or a
            run was ended while it replaced the folder.
        UnsafePickleError: A PyTorch file that asks for more than tensors; nothing was run.
        UnsupportedModelError: A kind of model or file that phiconv does not read.
        UsageError: ``config`` for what needs none, ``base`` for what is no adapter.
    """
    path = expanded(path)
    if base is not None:
        if adapter_folder(path) is None:
            raise UsageError("--base is for an adapter, and this is none", path=path, hint="leave it out")
        path, lora = expanded(base), (path, *lora)
    for flag, given in (("--config", config is not None), ("--lora", bool(lora))):
        if plain and given:
            raise UsageError(f"--plain contradicts {flag}", hint="give one of them")
    with noting_files() as noted:
        found = _checkpoint(path, config)
        if plain:
            model = Model(path, found.format, found.stored, metadata=found.metadata)
        else:
            model = merge(_model(found, text_only=text_only), lora)
    return replace(model, opened=(*noted,))


def _checkpoint(path: Path, config: str | PathLike[str] | None) -> Checkpoint:
    """What the reader of a path finds, unless a run was ended while it replaced that."""
    try:
        path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f"cannot be opened: {error.strerror}", path=path) from error
    with unnoted_files():  # that list is not a part of the model
        refuse_half_replaced(path)
    return find_reader(path)(path, None if config is None else _companions(expanded(config)))


def _model(found: Checkpoint, *, text_only: bool = False) -> Model:
    """What a reader found as a model; an error carries it."""
    with keeping(lambda _: found):
        return _named_model(found, text_only=text_only)


def _named_model(found: Checkpoint, *, text_only: bool) -> Model:
    path = found.path
    if found.config is None:
        return Model(path, found.format, found.stored, metadata=found.metadata)
    keys = Config(found.config, found.config_path)
    architecture = architectures.find(keys)
    hyperparameters = architecture.parse(keys)
    whole = found
    found, text = _text_of(found, keys)
    named = found.stored if found.tensors is None else found.tensors
    hyperparameters, tensors = architectures.read_weights(
        architecture, hyperparameters, named, path, keys.values
    )
    for adapter in text.adapters.values() if text else ():
        if isinstance(adapter, Adapter):
            changes_by_role(architecture, hyperparameters, adapter)  # refuses one that does not fit
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
        own_adapters=text.adapters if text else {},
        left_out=text.left_out if text else found.left_out,
        senses=None if text_only or found.left_out else _senses_of(whole, keys, hyperparameters),
    )


def _senses_of(found: Checkpoint, config: Config, hp: Hyperparameters) -> Senses | None:
    """The encoders of a multimodal checkpoint."""
    kind = architectures.find_multimodal(config)
    if kind is None:
        return None
    named = found.stored if found.tensors is None else found.tensors
    return senses(kind, named, config, hp.hidden_size, found.card.preprocessor, found.path)


def _text_of(found: Checkpoint, config: Config) -> tuple[Checkpoint, TextPart | None]:
    """The text part of a multimodal checkpoint, and what is beside it; any other checkpoint as it is."""
    kind = architectures.find_multimodal(config)
    if kind is None:
        return found, None
    named = found.stored if found.tensors is None else found.tensors
    card = replace(found.card, config=text_config(kind, found.card.config))
    if found.left_out:
        return replace(found, card=card), TextPart(named, {}, found.left_out)
    text = text_part(kind, named, config, found.path)
    stored = text_stored(kind, found.stored)
    return replace(found, stored=stored, tensors=text.tensors, card=card), text


@dataclass(frozen=True, slots=True, repr=False)
class Examination(Brief):
    """What can be told of a path, be it a model or not quite.

    Attributes:
        found: What its reader found: format, tensors, config.json, metadata.
        stated: The architecture, as the files call it; "" where they do not say.
        architecture: The same as phiconv calls it; None where it is no whole model that phiconv knows.
        hyperparameters: None where they cannot be read.
        tokenizer: None where there is none, or none that can be read.
        error: Why it is no model; None where it is one, a file of plain tensors, or an adapter.
        adapter: The adapter that it is instead of a model.
        senses: The encoders of a multimodal checkpoint; None for a model of text alone.
    """

    found: Checkpoint
    stated: str
    architecture: str | None
    hyperparameters: Hyperparameters | None
    tokenizer: Tokenizer | None
    error: InputError | None
    adapter: Adapter | None = None
    senses: Senses | None = None


def examine(path: str | PathLike[str], *, config: str | PathLike[str] | None = None) -> Examination:
    """Looks at a model as `open_model` does, and at whatever there is of one that is refused.

    Raises:
        InputError: There is nothing to look at.
    """
    path = expanded(path)
    adapter = tolerated(lambda: open_adapter(path) if adapter_folder(path) else None)
    if adapter is not None:
        found = Checkpoint(path, "peft", adapter.stored)
        return Examination(found, "", None, None, None, None, adapter)
    try:
        found = _checkpoint(path, config)
        model, error = _model(found), None
    except InputError as reason:
        error, kept = reason, found_by(reason)
        if kept is None:
            raise
        found, model = kept, None
    if model is not None and model.architecture is not None:
        return Examination(
            found,
            _stated(found),
            model.architecture,
            model.hyperparameters,
            model.tokenizer,
            None,
            senses=model.senses,
        )
    hyperparameters = tolerated(lambda: _hyperparameters(found))
    tokenizer = tolerated(lambda: found.read_tokenizer(MAX_TOKENS))
    return Examination(found, _stated(found), None, hyperparameters, tokenizer, error)


def _stated(found: Checkpoint) -> str:
    """What the files call the architecture."""
    config = found.config or {}
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else config.get("model_type")
    if not isinstance(name, str):
        name = getattr(found.metadata.get("general.architecture"), "value", "")
    return name if isinstance(name, str) else ""


def _hyperparameters(found: Checkpoint) -> Hyperparameters | None:
    if found.config is None:
        return None
    config = Config(found.config, found.config_path)
    return architectures.find(config).parse(config)
