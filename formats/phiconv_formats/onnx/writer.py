"""An ONNX model in a folder for ONNX Runtime GenAI, or for transformers.js, laid out before a weight is read.

GenAI has the graph, the file of weights beside it, genai_config.json, config.json, and the tokenizer's files;
for the other one see `transformers_js`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from phiconv import ir
from phiconv.errors import OutputError, UsageError
from phiconv_formats.folders.companions import json_bytes, model_config
from phiconv_formats.onnx import senses, transformers_js
from phiconv_formats.onnx.config import check_model, make_config, runtime_notes
from phiconv_formats.onnx.emitter import OnnxOps
from phiconv_formats.onnx.pipeline import PIPELINE_NOTES, make_pipeline_config, make_stages
from phiconv_formats.onnx.processors import processor_files
from phiconv_formats.onnx.store import Store
from phiconv_formats.onnx.targets import TARGETS
from phiconv_formats.onnx.tokenizer import renamed_tokens, tokenizer_files, tokenizer_notes
from phiconv_formats.shared.output import OutputFile, Package, RuntimeSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["LAYOUTS", "package"]

_DEFAULT_NAME = "model.onnx"
_SMALLEST_BLOCK = 16


def package(
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,
    recipe: str,
    split_max_size: int | None = None,
    importance: ImportanceMatrix | None = None,  # noqa: ARG001 - nothing here weighs errors
    settings: RuntimeSettings | None = None,
) -> Package:
    """Lays the whole output out; see `phiconv_formats.Writer`.

    Raises:
        UnsupportedModelError: A model that ONNX Runtime cannot run.
        UsageError: A layout that there is not, or what it has no place for.
    """
    settings = settings or RuntimeSettings()
    layout = settings.layout or next(iter(LAYOUTS))
    if layout not in LAYOUTS:
        raise UsageError(f"no layout {layout!r}", hint=f"one of {', '.join(LAYOUTS)}")
    check_model(model, TARGETS[settings.target or next(iter(TARGETS))])
    made = LAYOUTS[layout](_Wanted(model, tensors, encodings, file_name, recipe, split_max_size, settings))
    files = [OutputFile(name, len(data), ((0, data),)) for name, data in made.files.items()]
    return Package(
        (*files, *made.store.files),
        tuple(made.store.streams),
        (*made.notes, *_notes(tensors, encodings)),
        own_folder=not file_name,
        stale=made.stale,
        beside=made.beside,
    )


def _graph(model: Model, store: Store, settings: RuntimeSettings) -> bytes:
    assert model.hyperparameters is not None  # noqa: S101 - check_model has looked
    assert model.forward is not None  # noqa: S101
    ops = OnnxOps(model, store, settings)
    return cast("bytes", model.forward(ops, model.hyperparameters))  # what `OnnxOps.logits` gives


class _Wanted(NamedTuple):
    """What a folder is made of; see the arguments of `package`."""

    model: Model
    tensors: Sequence[OutputTensor]
    encodings: Sequence[Encoding]
    file_name: str
    recipe: str
    split_max_size: int | None
    settings: RuntimeSettings


class _Folder(NamedTuple):
    """What is in a folder.

    Attributes:
        store: The weights.
        files: The other files, the one that a runtime opens first.
        notes: What its runtime does wrong.
        stale: Patterns of files of an older output.
        beside: Patterns of files that may stay.
    """

    store: Store
    files: dict[str, bytes]
    notes: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def _for_genai(wanted: _Wanted) -> _Folder:
    if wanted.split_max_size is not None:
        raise UsageError("--split-max-size means nothing for onnx: all weights are in one file")
    model, hp, settings = wanted.model, wanted.model.hyperparameters, wanted.settings
    assert hp is not None  # noqa: S101 - check_model has looked
    if TARGETS[settings.target or next(iter(TARGETS))].static:
        return _for_pipeline(wanted)
    if model.senses is not None:
        return _for_senses(wanted)
    name = wanted.file_name or _DEFAULT_NAME
    _check_name(name)
    store = Store(f"{name}.data", wanted.tensors, wanted.encodings)
    target = TARGETS[settings.target or next(iter(TARGETS))]
    config = make_config(model, name, target, _session(store, settings))
    files = {name: _graph(model, store, settings), **_companions(model, config)}
    return _Folder(store, files, (*runtime_notes(model), *tokenizer_notes(model.tokenizer)))


def _for_senses(wanted: _Wanted) -> _Folder:
    """A model that sees or hears: several graphs with one file of weights."""
    model, settings = wanted.model, wanted.settings
    assert model.senses is not None  # noqa: S101 - the caller has looked
    senses.check_senses(model)
    store = Store(f"{_DEFAULT_NAME}.data", wanted.tensors, wanted.encodings)
    target = TARGETS[settings.target or next(iter(TARGETS))]
    config = make_config(model, senses.TEXT, target, _session(store, settings))
    files = _companions(model, senses.with_senses(model, config))
    if names := senses.names_of_places(model):
        files |= renamed_tokens(files, names)
    files |= senses.graphs(model, store, settings, target) | processor_files(model.senses)
    notes = (*runtime_notes(model), *senses.notes_of_senses(model), *tokenizer_notes(model.tokenizer))
    return _Folder(store, files, notes)


def _for_pipeline(wanted: _Wanted) -> _Folder:
    if wanted.file_name:
        raise UsageError(
            "--target qnn writes several graphs", hint="give the name of a folder, and --to onnx"
        )
    model, settings = wanted.model, wanted.settings
    store = Store(f"{_DEFAULT_NAME}.data", wanted.tensors, wanted.encodings)
    stages = make_stages(model, store, settings)
    config = make_pipeline_config(model, stages, TARGETS[settings.target or next(iter(TARGETS))])
    files = _companions(model, config) | {stage.file: stage.graph for stage in stages}
    return _Folder(store, files, (*PIPELINE_NOTES, *tokenizer_notes(model.tokenizer)), ("*.onnx",))


def _companions(model: Model, config: Mapping[str, Any]) -> dict[str, bytes]:
    """What is beside the graphs, GenAI's own file first."""
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - check_model has looked
    return {
        "genai_config.json": json.dumps(config, indent=4).encode(),
        "config.json": json_bytes(model_config(model)),  # not for GenAI: phiconv can open the folder with it
        **tokenizer_files(model, hp.max_position_embeddings),
    }


def _for_transformers_js(wanted: _Wanted) -> _Folder:
    tensors, encodings = wanted.tensors, wanted.encodings
    kinds = Store("", tensors, encodings)
    transformers_js.check(wanted.model, wanted.file_name, wanted.settings, standard=kinds.standard)
    names, folder = transformers_js.find_names(wanted.recipe, kinds.float_type), transformers_js.FOLDER + "/"
    weights = f"{names.graph}_data"
    store = Store(weights, tensors, encodings, folder=folder, limit=wanted.split_max_size)
    name = folder + names.graph
    files = {name: _graph(wanted.model, store, wanted.settings)}
    files |= transformers_js.folder_files(wanted.model, names, store)
    notes = transformers_js.runtime_notes(wanted.model)
    beside = (f"{folder}*.onnx", f"{folder}*.onnx_data*", f"{folder}*.onnx.receipt.json")
    return _Folder(store, files, notes, (f"{folder}{weights}*",), beside)


LAYOUTS = {"genai": _for_genai, "transformers.js": _for_transformers_js}
"""Whose folders there are, by the names that ``--layout`` takes; the first is the usual one."""


def _check_name(name: str) -> None:
    """The graph and genai_config.json hold the name, and both are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise OutputError(
            "the name is not UTF-8, and an ONNX model holds it", path=name, hint="choose another name"
        ) from None


def _session(store: Store, settings: RuntimeSettings) -> dict[str, str]:
    """How precisely the runtime multiplies, where that is not said at each product."""
    if not store.standard or settings.accuracy_level is None:
        return {}
    return {"session.qdq_matmulnbits_accuracy_level": str(settings.accuracy_level)}


def _notes(tensors: Sequence[OutputTensor], encodings: Sequence[Encoding]) -> list[str]:
    """Matrices that stayed floats where others were quantized."""
    matrices = [(t, e) for t, e in zip(tensors, encodings, strict=True) if t.role and len(t.tensor.shape) > 1]
    chosen = [(t, e) for t, e in matrices if t.required is None]
    kept = [t for t, e in chosen if isinstance(e, ir.FloatEncoding) and t.tensor.columns % _SMALLEST_BLOCK]
    if not kept or all(isinstance(e, ir.FloatEncoding) for _, e in matrices):
        return []
    columns = ", ".join(map(str, sorted({t.tensor.columns for t in kept})))
    what = f"{len(kept)} matrices stay unquantized, the first is {kept[0].name}"
    return [f"{what}: rows of {columns} weights do not divide into blocks of {_SMALLEST_BLOCK}"]
