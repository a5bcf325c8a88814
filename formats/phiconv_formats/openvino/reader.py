"""An OpenVINO model as a source: its weights under the names that Hugging Face uses.

A weight is what a product, a look-up, a norm or a bias takes from constants (see `decompression`). What it is
called says the constant, which converters name after the tensor of the checkpoint; where a constant has no
such name, because it was folded or is shared, the operation says it, which they name after its module.
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from phiconv.errors import MissingFileError, UnsupportedModelError, printable
from phiconv.ir.findings import keeping
from phiconv.ir.model import Checkpoint
from phiconv_formats.folders.model_folder import optional_json, whatever_is_there, with_folder
from phiconv_formats.openvino.decompression import Chains
from phiconv_formats.openvino.ir_graph import read_graph
from phiconv_formats.openvino.names import DECODER, EMBEDDING, MODEL
from phiconv_formats.shared.files import InputFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from phiconv import ir
    from phiconv_formats.openvino.decompression import Chain
    from phiconv_formats.openvino.ir_graph import IrGraph, Layer

__all__ = ["open_checkpoint"]

_MODEL_FILE = f"{MODEL}.xml"
"""The model in a folder."""

_DECODER_FILE, _EMBEDDING_FILE = f"{DECODER}.xml", f"{EMBEDDING}.xml"
"""The language model in the folder of one that sees, in two graphs."""

_EMBEDDING_NAME = "model.embed_tokens.weight"
"""What the one weight of the second is in a checkpoint; converters that trace it by itself do not say."""

_LEFT_OUT = "only the text part of this model is taken: its graphs for pictures are not read"

# Which input of an operation may be a weight; of a sum or a product of numbers either, if the other is none.
_WEIGHTS = {"MatMul": (0, 1), "Gather": (0,), "Multiply": (0, 1), "Add": (0, 1)}

# What the end of a constant's name stands for in a checkpoint. Converters that cut the stacked gate and up
# matrices of all experts name the halves after the operation that did; float16 is "_compressed" to them.
_ENDS = {
    "._openvino_orig_weight": ".weight",
    "._openvino_orig_bias": ".bias",
    "/prim::ListUnpack/VariadicSplit.0": ".gate_proj.weight",
    "/prim::ListUnpack/VariadicSplit.1": ".up_proj.weight",
    ".mlp.experts.down_proj": ".mlp.experts.down_proj.weight",
}

_MODULE = re.compile(r"__module\.([A-Za-z0-9_.]+)/.*")


def open_checkpoint(path: Path, companions: Path | None = None) -> Checkpoint:
    """Opens an OpenVINO folder, or the .xml of a model; of one that sees the language model alone.

    An .xml without config.json beside it, or in ``companions``, is a file of plain tensors.

    Raises:
        MissingFileError: A folder without config.json, an .xml without its .bin.
        MalformedFileError: A file that does not follow its format.
        UnsupportedModelError: No language model, or one whose weights are stored in a way that phiconv does
            not read.
    """
    document = path
    if path.is_dir():
        names = (_MODEL_FILE, _DECODER_FILE)
        document = path / next((name for name in names if (path / name).exists()), _MODEL_FILE)
    config_path = (companions or document.parent) / "config.json"
    with keeping(lambda found: whatever_is_there(found, path, config_path, "openvino")):
        return _open(path, document, config_path)


def _open(path: Path, document: Path, config_path: Path) -> Checkpoint:
    if path.is_dir() and not config_path.exists():
        hint = "put it there, or give --config and a folder that has it"
        raise MissingFileError("no config.json in this folder", path=path, hint=hint)
    stored, tensors = _graph_weights(document)
    config = optional_json(config_path)
    if config is None:
        return Checkpoint(path, "openvino", stored)
    found = Checkpoint(path, "openvino", stored, tensors=tensors)
    if document.name == _DECODER_FILE:
        found = _with_embedding(found, document.with_name(_EMBEDDING_FILE))
    return with_folder(found, config_path, config)


def _graph_weights(document: Path) -> tuple[dict[str, ir.Tensor], dict[str, ir.Tensor]]:
    """The weights of a graph, see `_weights`."""
    binary = document.with_suffix(".bin")
    graph = read_graph(document)
    if not binary.exists():
        raise MissingFileError("there is no such file: it has the weights", path=binary)
    return _weights(graph, InputFile(binary))


def _with_embedding(decoder: Checkpoint, document: Path) -> Checkpoint:
    """The language model of one that sees: a decoder whose embeddings are looked up in another graph.

    Raises:
        MissingFileError: That graph is not there.
        UnsupportedModelError: It has more than one weight.
    """
    if not document.exists():
        raise MissingFileError("there is no such file: it has the embeddings", path=document)
    stored, tensors = _graph_weights(document)
    if len(tensors) != 1:
        raise UnsupportedModelError("looks up more than one weight", path=document)
    ((name, embedding),) = stored.items()
    stored = {name: embedding, **{n: t for n, t in decoder.stored.items() if n != name}}
    named = {_EMBEDDING_NAME: embedding, **(decoder.tensors or {})}
    return replace(decoder, stored=stored, tensors=named, left_out=_LEFT_OUT)


def _weights(graph: IrGraph, file: InputFile) -> tuple[dict[str, ir.Tensor], dict[str, ir.Tensor]]:
    """The weights by the names of their constants, and by those of Hugging Face.

    Raises:
        UnsupportedModelError: There are none; one is used in a way that no Phi uses it; one name stands for
            two constants.
    """
    chains = Chains(graph, file)
    found: dict[int, tuple[str, ir.Tensor]] = {}
    named: dict[str, int] = {}
    for user, chain in _used(graph, chains):
        layer = chain.layer
        if layer.number not in found:
            found[layer.number] = (chain.stored.name, chains.tensor(chain))
        name = _name(user, chain.stored.name)
        if named.setdefault(name, layer.number) != layer.number:
            raise UnsupportedModelError(
                "two constants are this weight", path=graph.path, at=f"tensor {printable(name)}"
            )
    if not found:
        raise UnsupportedModelError(
            "no operation of this graph uses a weight: it is no language model",
            path=graph.path,
            hint=f"give a model folder, or its {_MODEL_FILE}",
        )
    stored = dict(found.values())
    if len(stored) < len(found):  # constants of one name: their numbers tell them apart
        stored = {f"{name}:{number}": tensor for number, (name, tensor) in found.items()}
    return stored, {name: found[number][1] for name, number in named.items()}


def _used(graph: IrGraph, chains: Chains) -> Iterator[tuple[Layer, Chain]]:
    """Every operation that takes a weight, and the weight.

    Raises:
        UnsupportedModelError: A matrix is stored by columns.
    """
    for user in graph.layers.values():
        if user.kind not in _WEIGHTS:
            continue
        inputs = graph.inputs(user)
        constant = [chains.follow(layer) for layer in inputs[:2]]
        if len(inputs) < 2 or all(constant):
            continue  # all of it is constant, and part of a chain itself
        for index, chain in enumerate(constant):
            if chain is None or index not in _WEIGHTS[user.kind] or _is_no_weight(user, chain):
                continue
            by_rows = index == 1 and user.attributes.get("transpose_b") == "true"
            if user.kind == "MatMul" and not by_rows:
                raise UnsupportedModelError(
                    f"is stored by columns in {printable(chain.stored.name)}, which phiconv does not read",
                    path=graph.path,
                    at=f"layer {printable(user.name)}",
                    hint="convert the original checkpoint",
                )
            yield user, chain


def _is_no_weight(user: Layer, chain: Chain) -> bool:
    """Whether a constant is a single number, or of the rotary embedding, which config.json says too.

    A product of its frequencies, a column, with the positions makes the angles.
    """
    shape = chain.stored.shape
    is_angle = user.kind == "MatMul" and chain.scales is None and shape[-1:] == (1,)
    return prod(shape) == 1 or is_angle or ".rotary_emb/" in user.name


def _name(user: Layer, constant: str) -> str:
    """A weight's name in a Hugging Face checkpoint; the constant's own where it has none there."""
    if constant.endswith((".weight", ".bias")) and not constant.startswith(("self.", "__module.")):
        return constant  # phiconv's, also of a tied head, whose product is named after the head
    module = _MODULE.fullmatch(user.name)
    if module and not module[1].endswith(".experts"):  # a module that has more than one weight
        name = f"{module[1]}.{'bias' if user.kind == 'Add' else 'weight'}"
    else:
        name = constant.removeprefix("self.").removeprefix("__module.").removesuffix("_compressed")
        end = next((end for end in _ENDS if name.endswith(end)), "")
        name = name.removesuffix(end) + _ENDS.get(end, "")
    return name
