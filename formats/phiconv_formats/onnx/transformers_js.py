"""The folder that transformers.js loads, and onnx-community shares: config and tokenizer, the graph in onnx/.

    config.json                  with "transformers.js_config": which graph, and its files of weights
    tokenizer.json, tokenizer_config.json, generation_config.json ...
    onnx/model_q4.onnx           the graph
    onnx/model_q4.onnx_data      its weights; more of them are called model_q4.onnx_data_1 and so on

Facts from transformers.js 4.3: names of types (utils/dtypes.js), of files of weights (utils/model-loader.js),
the keys of config.json (configs.js), and the families that it generates text with (models/registry.js).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from phiconv import ir
from phiconv.errors import MissingFileError, UnsupportedModelError, UsageError
from phiconv_formats.folders.companions import (
    companion_files,
    json_bytes,
    made_tokenizer_files,
    model_config,
)
from phiconv_formats.onnx.rotary import has_two_tables

if TYPE_CHECKING:
    from phiconv.ir.model import Model
    from phiconv_formats.onnx.store import Store
    from phiconv_formats.shared.output import RuntimeSettings

__all__ = ["FOLDER", "SECTION", "Names", "check", "find_names", "folder_files", "runtime_notes"]

FOLDER = "onnx"
"""Where the graphs are, inside of the model's folder."""

SECTION = "transformers.js_config"
"""The key of config.json that is for this library alone."""


class Names(NamedTuple):
    """What a graph is called.

    Attributes:
        dtype: The type that a page asks for.
        graph: The file.
    """

    dtype: str
    graph: str


_NAMES = {
    ("f32", ir.F32): Names("fp32", "model.onnx"),
    ("f16", ir.F32): Names("fp16", "model_fp16.onnx"),
    ("f16", ir.F16): Names("fp16", "model_fp16.onnx"),
    ("int8", ir.F32): Names("q8", "model_quantized.onnx"),
    ("int4", ir.F32): Names("q4", "model_q4.onnx"),
    ("int4", ir.F16): Names("q4f16", "model_q4f16.onnx"),
}
"""By how names of recipes begin, and by the float type that the graph computes in."""

_NEAREST = {
    ("bf16", ir.F32): "give --f16 or --f32",
    ("int8", ir.F16): "give --q4, or --target cpu",
}

_FAMILIES = frozenset("llama phi phi3 qwen2 qwen3".split())
"""Those of phiconv's that it knows."""


def find_names(recipe: str, computes_in: ir.FloatEncoding) -> Names:
    """What a graph is called.

    Raises:
        UsageError: transformers.js has no name for such a one.
    """
    key = recipe.partition("-")[0], computes_in
    if key not in _NAMES:
        what = recipe if computes_in == ir.F32 else f"{recipe} computed in {computes_in.name}"
        hint = _NEAREST.get(key, "give --q4, --q8, --f16 or --f32")
        raise UsageError(f"transformers.js has no name for {what}", hint=hint)
    return _NAMES[key]


def check(model: Model, file_name: str, settings: RuntimeSettings, *, standard: bool) -> None:
    """Refuses what transformers.js cannot load, and what it cannot be told.

    Args:
        model: The model.
        file_name: The destination, where it is a file.
        settings: What the user wants.
        standard: Products are in ONNX's own operators.

    Raises:
        UsageError: A file for a destination, or an accuracy level that has no place.
        UnsupportedModelError: A family that it does not know.
        MissingFileError: No tokenizer.
    """
    option = "--layout transformers.js"
    if settings.target == "qnn":
        raise UsageError(f"--target qnn means nothing for {option}", hint="leave one of them out")
    if file_name:
        raise UsageError(f"{option} writes a folder", hint="give the name of a folder, and --to onnx")
    if standard and settings.accuracy_level is not None:
        message = "--accuracy-level: of ONNX's own operators it is a setting of the session"
        raise UsageError(f"{message}, which {option} has no place for", hint="leave one of them out")
    if model.architecture not in _FAMILIES:
        raise UnsupportedModelError(
            f"transformers.js (4.3) knows no model of type {model.architecture}",
            path=model.path,
            hint=f"leave {option} out: ONNX Runtime GenAI runs it",
        )
    if model.tokenizer is None:
        raise MissingFileError(
            "no tokenizer beside the weights, which transformers.js needs",
            path=model.path,
            hint="put tokenizer.json, or tokenizer.model, and tokenizer_config.json there",
        )


def folder_files(model: Model, names: Names, store: Store) -> dict[str, bytes]:
    """All files but the graph and its weights, by name."""
    files = companion_files(model)
    needed = {"tokenizer.json", "tokenizer_config.json"}
    if not needed <= files.keys():
        files = made_tokenizer_files(model) | files
    return {"config.json": json_bytes(_config(model, names, store)), **files}


def runtime_notes(model: Model) -> tuple[str, ...]:
    """What transformers.js (4.3) does otherwise than transformers."""
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - output_tensors has looked
    if not has_two_tables(hp.rope, hp.max_position_embeddings):
        return ()
    first = hp.rope.original_context + 1
    note = (
        f"transformers.js does not take up a text again at its {first}th token, when the long rotary factors "
        "begin: an answer that crosses that point is off, see --long-context"
    )
    return (note,)


def _config(model: Model, names: Names, store: Store) -> dict[str, Any]:
    """config.json: the model's, with what is looked at before the graph is there."""
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - output_tensors has looked
    section: dict[str, Any] = {
        "dtype": names.dtype,  # else a processor would look for fp32, and a browser for q8
        "use_external_data_format": {names.graph: len(store.files)},
    }
    if store.float_type == ir.F16:  # release 4 asks the graph itself
        section["kv_cache_dtype"] = {names.dtype: "float16"}
    return {
        **model_config(model),
        "model_type": model.architecture,
        "num_key_value_heads": hp.num_key_value_heads,  # release 3 makes the cache by it
        SECTION: section,
    }
