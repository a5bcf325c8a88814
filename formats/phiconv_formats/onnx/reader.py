"""An ONNX model as a source: a folder of ONNX Runtime GenAI, of phiconv or its own builder.

Or a folder of transformers.js with such a graph. Nothing of ONNX Runtime is needed, and no weight is read
before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv.architectures import ARCHITECTURES
from phiconv.errors import MalformedFileError, MissingFileError, UnsupportedModelError, printable
from phiconv.ir.findings import keeping
from phiconv.ir.model import Checkpoint
from phiconv_formats.folders.model_folder import optional_json, whatever_is_there, with_folder
from phiconv_formats.onnx.checkpoint_names import checkpoint_names, find_weights
from phiconv_formats.onnx.graph_reader import read_graph
from phiconv_formats.onnx.initializers import Initializers, is_plain_name
from phiconv_formats.onnx.source_config import (
    derived_config,
    find_heads,
    generation_config,
    pipeline_files,
)
from phiconv_formats.onnx.stored_matrices import find_matrices
from phiconv_formats.onnx.transformers_js import FOLDER, SECTION
from phiconv_formats.shared.files import InputFile
from phiconv_formats.shared.links import refuse_outside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from phiconv.architectures import Architecture
    from phiconv_formats.onnx.checkpoint_names import Weights
    from phiconv_formats.onnx.graph_reader import GraphFile
    from phiconv_formats.onnx.stored_matrices import Matrix

__all__ = ["open_checkpoint"]

_MOST_NAMES = 12
_NUMBERED, _LAYERS = "::", "model.layers."


def open_checkpoint(path: Path, companions: Path | None = None) -> Checkpoint:
    """Opens an ONNX file, or the one in a folder.

    The folder of a file in ``onnx/`` is the one above, if config.json is there and not beside it. A file with
    neither config.json (which may be in ``companions``) nor genai_config.json is a file of plain tensors.

    Raises:
        MissingFileError: No ONNX file, no file of weights; or no config.json where the other files do not say
            what it would.
        UnsupportedModelError: Weights that are stored in a way that phiconv does not read, or without names.
        MalformedFileError: Any file that does not follow its format.
    """
    folder = _folder(path)
    config_path = (companions or folder) / "config.json"
    with keeping(lambda found: whatever_is_there(found, path, config_path, "onnx")):
        return _open(path, folder, config_path)


def _open(path: Path, folder: Path, config_path: Path) -> Checkpoint:
    genai_path = folder / "genai_config.json"
    genai = optional_json(genai_path)
    files = _graph_files(folder, genai or {}) if path.is_dir() or _is_decoder(path, genai or {}) else [path]
    file = InputFile(files[0])
    graph = read_graph(file)
    for other in files[1:]:
        _add(graph, read_graph(InputFile(other)))
    if any(node.operator == "EPContext" for node in graph.nodes):
        raise UnsupportedModelError(
            "is compiled for one kind of processor", path=path, hint="take the folder that it was made from"
        )
    tensors = Initializers(graph, file)
    matrices = find_matrices(graph, tensors)
    weights = find_weights(matrices, tensors)
    heads = find_heads(graph, file.path, genai or {})
    config = optional_json(config_path)
    if config is None and genai is None:
        if path.is_dir():
            message, hint = (
                "no config.json in this folder",
                "put it there, or give --config and a folder that has it",
            )
            raise MissingFileError(message, path=path, hint=hint)
        return Checkpoint(path, "onnx", weights.tensors)
    if config is None:
        config_path, config = genai_path, derived_config(genai or {}, graph, tensors, weights)
    if config_path.parent != file.path.parent:
        config.pop(SECTION, None)  # speaks of this folder's files
    _check_names(matrices, file.path)
    named = checkpoint_names(weights, _family(config), heads)
    checkpoint = Checkpoint(path, "onnx", weights.tensors, tensors=named, left_out=_left_out(genai or {}))
    return with_folder(checkpoint, config_path, _with_ends(config, weights), generation_config(genai or {}))


def _left_out(genai: Mapping[str, Any]) -> str:
    """What to say of graphs that are not read."""
    model = genai.get("model")
    if not isinstance(model, dict) or not {"vision", "speech"} & {*model}:
        return ""
    return "only the text part of this model is taken: what it sees or hears with is left out"


def _check_names(matrices: Sequence[Matrix], path: Path) -> None:
    """Refuses a graph whose matrices are numbered, as exporters that trace a model leave them.

    Raises:
        UnsupportedModelError: Nothing but the graph's structure says what they are.
    """
    names = [matrix.path for matrix in matrices if not matrix.lookup]
    numbered = next((name for name in names if _NUMBERED in name), "")
    if not numbered and names and not any(name.startswith(_LAYERS) for name in names):
        numbered = names[0]
    if numbered:
        raise UnsupportedModelError(
            f"its matrices have names that do not say what they are, as {printable(numbered, 80)}",
            path=path,
            hint="take the original checkpoint, or a graph of phiconv or GenAI's model builder",
        )


def _folder(path: Path) -> Path:
    """Where config.json is: beside the graph, or above the folder that graphs of transformers.js are in."""
    folder = path if path.is_dir() else path.parent
    settings = [folder / name for name in ("config.json", "genai_config.json")]
    above = folder.absolute().parent
    if folder.absolute().name == FOLDER and (above / "config.json").exists():
        return folder if any(p.exists() for p in settings) else above
    return folder


def _family(config: Mapping[str, Any]) -> Architecture | None:
    """The model's family, as far as names go; what is wrong with the key is said later."""
    classes = config.get("architectures")
    name = str(classes[0] if isinstance(classes, list) and classes else config.get("model_type")).lower()
    found = (a for a in ARCHITECTURES.values() if name in {a.name, *map(str.lower, a.classes)})
    return next(found, None)


def _with_ends(config: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """The configuration with the two ends of the model as the graph has them, tied or not."""
    ends = {"model.embed_tokens.weight", "lm_head.weight"} & weights.tensors.keys()
    if weights.tied and not ends - {"model.embed_tokens.weight"}:
        return {**config, "tie_word_embeddings": True}
    apart = len(ends) == 2 and config.get("tie_word_embeddings") is True
    return {**config, "tie_word_embeddings": False} if apart else dict(config)


def _add(graph: GraphFile, other: GraphFile) -> None:
    """Adds another graph of a pipeline, whose weights are in files of their own; constants are not needed."""
    graph.nodes += other.nodes
    for name, tensor in other.tensors.items():
        if tensor.file:
            graph.tensors.setdefault(name, tensor)


def _graph_files(folder: Path, genai: Mapping[str, Any]) -> list[Path]:
    """The ONNX files of a folder: those that genai_config.json names, else the only one, maybe in onnx/."""
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if isinstance(decoder, dict) and decoder.get("filename") is not None:
        files = [_named(folder, decoder["filename"], "filename")]
        if (embedding := _embedding_file(model)) is not None:  # a model that sees
            files.append(_named(folder, embedding, "filename", "embedding"))
        return files
    if isinstance(decoder, dict) and (stages := pipeline_files(decoder)):
        return [_named(folder, name, "pipeline") for name in stages]
    refuse_outside(folder / FOLDER, folder)
    found = sorted(folder.glob("*.onnx")) or sorted(folder.glob(f"{FOLDER}/*.onnx"))
    if len(found) == 1:
        return found
    message = f"{len(found)} .onnx files in this folder, and no genai_config.json that names one"
    raise MissingFileError(message, path=folder, hint=_one_of([str(p.relative_to(folder)) for p in found]))


def _is_decoder(path: Path, genai: Mapping[str, Any]) -> bool:
    """Whether a file is the decoder of a folder in which another graph looks embeddings up."""
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    named = isinstance(decoder, dict) and decoder.get("filename") == path.name
    return named and _embedding_file(model) is not None


def _embedding_file(model: object) -> object:
    """The graph that looks embeddings up, where the decoder does not; None where it does."""
    embedding = model.get("embedding") if isinstance(model, dict) else None
    return embedding.get("filename") if isinstance(embedding, dict) else None


def _named(folder: Path, name: object, key: str, section: str = "decoder") -> Path:
    """A graph by its name in genai_config.json."""
    if not isinstance(name, str) or not is_plain_name(name):
        message = f"{printable(name, 80)} is not the name of a file in the same folder"
        raise MalformedFileError(message, path=folder / "genai_config.json", at=f"key model.{section}.{key}")
    return folder / name


def _one_of(names: list[str]) -> str:
    """What to do where a folder has several graphs."""
    if not names:
        return "give the file itself"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    listed = ", ".join(printable(name, 80) for name in names[:_MOST_NAMES])
    return f"give the file itself: one of {listed}{more}"
