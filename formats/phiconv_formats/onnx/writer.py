"""An ONNX model for ONNX Runtime GenAI, laid out in full before a weight is read.

The graph, the file of weights beside it, genai_config.json, config.json, and the tokenizer's files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from phiconv import ir
from phiconv.errors import UsageError
from phiconv_formats.folders.companions import json_bytes, model_config
from phiconv_formats.onnx.config import check_model, make_config, runtime_notes
from phiconv_formats.onnx.emitter import OnnxOps
from phiconv_formats.onnx.store import Store
from phiconv_formats.onnx.targets import TARGETS
from phiconv_formats.onnx.tokenizer import tokenizer_files, tokenizer_notes
from phiconv_formats.shared.output import OutputFile, Package, RuntimeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["package"]

_DEFAULT_NAME = "model.onnx"
_SMALLEST_BLOCK = 16


def package(
    model: Model,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,
    recipe: str,  # noqa: ARG001 - nothing in the output is named after it
    split_max_size: int | None = None,
    importance: ImportanceMatrix | None = None,  # noqa: ARG001 - nothing here weighs errors
    settings: RuntimeSettings | None = None,
) -> Package:
    """Lays the whole output out; see `phiconv_formats.Writer`.

    Raises:
        UnsupportedModelError: A model that ONNX Runtime cannot run.
        UsageError: A split size: a graph names one file of weights.
    """
    if split_max_size is not None:
        raise UsageError("--split-max-size means nothing for onnx: all weights are in one file")
    settings = settings or RuntimeSettings()
    target = TARGETS[settings.target or next(iter(TARGETS))]
    check_model(model, target)
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - check_model has looked
    assert model.forward is not None  # noqa: S101
    name = file_name or _DEFAULT_NAME
    store = Store(f"{name}.data", tensors, encodings)
    ops = OnnxOps(model, store, settings)
    graph = cast("bytes", model.forward(ops, hp))  # what `OnnxOps.logits` gives
    config = make_config(model, name, target, _session(store, settings))
    small = {
        name: graph,
        "genai_config.json": json.dumps(config, indent=4).encode(),
        "config.json": json_bytes(model_config(model)),  # not for GenAI: phiconv can open the folder with it
        **tokenizer_files(model, hp.max_position_embeddings),
    }
    files = [OutputFile(name, len(data), ((0, data),)) for name, data in small.items()]
    return Package(
        (*files, OutputFile(store.file, store.size, ())),
        tuple(store.streams),
        (*runtime_notes(model), *tokenizer_notes(model.tokenizer), *_notes(tensors, encodings)),
        own_folder=not file_name,
    )


def _session(store: Store, settings: RuntimeSettings) -> dict[str, str]:
    """How precisely the runtime multiplies, where that is not said at each product."""
    if not store.standard or settings.accuracy_level is None:
        return {}
    return {"session.qdq_matmulnbits_accuracy_level": str(settings.accuracy_level)}


def _notes(tensors: Sequence[OutputTensor], encodings: Sequence[Encoding]) -> list[str]:
    """Matrices that stayed floats where others were quantized."""
    matrices = [(t, e) for t, e in zip(tensors, encodings, strict=True) if t.role and len(t.tensor.shape) > 1]
    kept = [t for t, e in matrices if isinstance(e, ir.FloatEncoding) and t.tensor.columns % _SMALLEST_BLOCK]
    if not kept or all(isinstance(e, ir.FloatEncoding) for _, e in matrices):
        return []
    columns = ", ".join(map(str, sorted({t.tensor.columns for t in kept})))
    what = f"{len(kept)} matrices stay unquantized, the first is {kept[0].name}"
    return [f"{what}: rows of {columns} weights do not divide into blocks of {_SMALLEST_BLOCK}"]
