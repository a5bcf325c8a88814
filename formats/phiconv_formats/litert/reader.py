"""A LiteRT model as a source: a .litertlm, or the .tflite of a graph alone.

phiconv keeps config.json in the graph, and the small files of the tokenizer, so its own files say all that
they were made of. The tokenizer of a graph alone is beside it. Files of litert-torch have no config.json:
what it would say is told from their graph, and of the tokenizer from what LiteRT-LM is told. Of other files
only the weights are read, as plain tensors.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiconv.errors import MalformedFileError, PhiconvError, printable
from phiconv.ir.findings import keeping
from phiconv.ir.model import Checkpoint, ModelCard
from phiconv_formats.folders.companions import json_bytes
from phiconv_formats.folders.model_folder import optional_json, whatever_is_there, with_folder
from phiconv_formats.litert.container import LLM_METADATA, MODEL, SECTION_KINDS, TOKENIZER
from phiconv_formats.litert.container_reader import is_container, read_sections, section_bytes
from phiconv_formats.litert.exported_config import exported_config
from phiconv_formats.litert.metadata_reader import tokenizer_settings
from phiconv_formats.litert.modules import exported_weights
from phiconv_formats.litert.source_weights import find_weights
from phiconv_formats.litert.tflite_reader import read_tflite
from phiconv_formats.litert.writer import NOTE
from phiconv_formats.shared.files import InputFile, unnoted_files
from phiconv_formats.shared.strict_json import parse_json
from phiconv_formats.tokenizers.folder import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from phiconv.tokenization.tokenizer import Tokenizer
    from phiconv_formats.litert.container_reader import StoredSection
    from phiconv_formats.litert.tflite_reader import TfLite

__all__ = ["open_checkpoint"]

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_SENTENCEPIECE = 4
_TOKENIZER_FILES = {TOKENIZER: "tokenizer.json", _SENTENCEPIECE: "tokenizer.model"}
_LARGEST_NOTE = 16 << 20

_NOT_DELEGATED = ("CAST", "CUMSUM", "DYNAMIC_UPDATE_SLICE", "EMBEDDING_LOOKUP", "GATHER", "SLICE")
"""Operators that XNNPACK leaves to TFLite's own kernels, as phiconv's graphs have them."""


def open_checkpoint(path: Path, companions: Path | None = None) -> Checkpoint:
    """Opens a .litertlm or a .tflite; which it is, is in the file.

    config.json is that of the folder ``companions``, if there is one; else the file's own; else the one
    beside the file. Without any it is a file of plain tensors.

    Raises:
        MalformedFileError: The file does not follow its format.
        UnsupportedModelError: Weights that are stored in a way that phiconv does not read.
    """
    config_path = (companions or path.parent) / _CONFIG
    with keeping(lambda found: whatever_is_there(found, path, config_path, "litert")):
        return _open(path, config_path, given=companions is not None)


def _open(path: Path, config_path: Path, *, given: bool) -> Checkpoint:
    file = InputFile(path)
    sections = read_sections(file) if is_container(file) else []
    graph = _graph(file, sections)
    notes = {name: place for name, place in graph.notes.items() if name.startswith(NOTE)}
    exported = None if notes else exported_weights(graph)
    stored = find_weights(graph, exported)
    metadata = _metadata(graph, sections, own=exported is None)
    checkpoint = Checkpoint(path, "litert", stored, metadata=metadata)
    own = {name.removeprefix(NOTE): _note(file, place) for name, place in notes.items()}
    outside = optional_json(config_path) if given or _CONFIG not in own else None
    if outside is not None:
        return with_folder(checkpoint, config_path, outside)
    if _CONFIG not in own and exported is None:
        return checkpoint
    with keeping(lambda _: checkpoint):
        if exported is not None:
            own = _settings(file, sections) | {_CONFIG: json_bytes(exported_config(graph, exported, stored))}
        return _with_own_files(checkpoint, file, own, sections)


def _settings(file: InputFile, sections: Sequence[StoredSection]) -> dict[str, bytes]:
    """What the file of another converter says of its tokenizer."""
    metadata = next((section for section in sections if section.kind == LLM_METADATA), None)
    return {} if metadata is None else tokenizer_settings(file, metadata)


def _graph(file: InputFile, sections: Sequence[StoredSection]) -> TfLite:
    """The model of a file: the first one that is for text."""
    if not sections:
        return read_tflite(file, 0, file.size)
    models = [section for section in sections if section.kind == MODEL]
    if not models:
        raise MalformedFileError(
            "there is no model in it", path=file.path, hint="take the file of a language model"
        )
    usual = (s for s in models if s.items.get("model_type", "").endswith("prefill_decode"))
    chosen = next(usual, models[0])
    return read_tflite(file, chosen.start, chosen.stop)


def _note(file: InputFile, place: tuple[int, int]) -> bytes:
    offset, size = place
    if size > _LARGEST_NOTE:
        raise MalformedFileError(f"settings of {size} bytes", path=file.path, at=f"byte {offset}")
    return file.read_bytes(offset, size)


def _object(data: bytes, path: Path, name: str) -> dict[str, Any]:
    value = parse_json(data, path=path, at=name)
    if not isinstance(value, dict):
        raise MalformedFileError("no JSON object", path=path, at=name)
    return value


def _with_own_files(
    checkpoint: Checkpoint, file: InputFile, own: Mapping[str, bytes], sections: Sequence[StoredSection]
) -> Checkpoint:
    """The weights as a model, with what is kept in the file itself."""
    path = checkpoint.path
    config = _object(own[_CONFIG], path, _CONFIG)
    generation = _object(own[_GENERATION], path, _GENERATION) if _GENERATION in own else {}

    def tokenizer(vocab_size: int) -> Tokenizer | None:
        if not sections:  # a graph alone
            return read_tokenizer(path.parent, vocab_size=vocab_size, config=config)
        files = {name: data for name, data in own.items() if name != _CONFIG}
        for section in sections:
            if section.kind in _TOKENIZER_FILES:
                files[_TOKENIZER_FILES[section.kind]] = section_bytes(file, section)
        return _read_tokenizer(files, path, vocab_size, config)

    card = ModelCard(None, config, generation)
    return replace(checkpoint, config=config, config_path=path, read_tokenizer=tokenizer, card=card)


def _read_tokenizer(
    files: Mapping[str, bytes], path: Path, vocab_size: int, config: Mapping[str, Any]
) -> Tokenizer | None:
    """A tokenizer of files in memory; errors are about the file that they are from."""
    with tempfile.TemporaryDirectory(prefix="phiconv-") as name, unnoted_files():
        for file, data in files.items():
            if "/" not in file and "\\" not in file:
                (Path(name) / file).write_bytes(data)
        try:
            return read_tokenizer(Path(name), vocab_size=vocab_size, config=config)
        except PhiconvError as error:
            inside = Path(str(error.path)).name if error.path is not None else "tokenizer"
            error.path, error.at = path, " ".join(filter(None, (inside, error.at)))
            raise


def _metadata(graph: TfLite, sections: Sequence[StoredSection], *, own: bool) -> dict[str, str]:
    """What `inspect` shows of a file beyond its weights.

    Args:
        graph: Its graph.
        sections: Its sections.
        own: Whether the graph may be one of phiconv's, of which is known what XNNPACK takes.
    """
    found = {}
    for number, section in enumerate(sections):
        items = "".join(f", {key} {value}" for key, value in section.items.items())
        kind = SECTION_KINDS.get(section.kind, f"kind {section.kind}")
        found[f"section {number}"] = f"{kind}, {section.stop - section.start} bytes at {section.start}{items}"
    found["written by"] = printable(graph.description)
    found["signatures"] = ", ".join(printable(signature.name) for signature in graph.signatures)
    mask = graph.shapes.get(f"{graph.prefix.rstrip('/')}_mask", ())
    if mask:
        fixed = f"{mask[-1]} positions, of fixed shape"
        found["cache"] = "grows with the text, which a GPU cannot" if mask[-1] < 0 else fixed
    counts = graph.operators
    found["operators"] = f"{counts.total()} in {graph.prefix.rstrip('/') or 'the first subgraph'}"
    if own:
        left = ", ".join(f"{counts[name]} {name}" for name in _NOT_DELEGATED if counts[name])
        found["operators that XNNPACK does not take"] = left or "none known"
    return found
