"""The names of an output's graphs, and under which an IR stores the weights.

Those of the weights are the names of Hugging Face checkpoints, fused where they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from phiconv import ir
from phiconv.architectures import ARCHITECTURES
from phiconv.architectures.architecture import full_name
from phiconv.errors import UnsupportedModelError
from phiconv.forward.ops import Recorder
from phiconv.ir.model import Role
from phiconv.quantizers.joining import join
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv.forward.ops import Forward
    from phiconv.ir.model import Model
    from phiconv.ir.senses import Encoder

__all__ = [
    "DECODER",
    "EMBEDDING",
    "MODEL",
    "PROJECTION",
    "SEPARATORS",
    "TOWER",
    "group_of",
    "module_of",
    "output_tensors",
    "with_own_head",
]

MODEL = "openvino_model"
"""The graph of a model of text, as its files are called without suffix."""

DECODER, EMBEDDING = "openvino_language_model", "openvino_text_embeddings_model"
TOWER, PROJECTION = "openvino_vision_embeddings_model", "openvino_vision_projection_model"
"""Those of a model that sees."""

SEPARATORS = {"vision.row_end": "sub_GN", "vision.separator": "glb_GN"}
"""Vectors of an encoder that are no part of a graph: OpenVINO GenAI looks for them in config.json."""

_PLACES = ("vision.patch_embedding", "vision.position_embedding")
"""Matrices of an encoder that stay float32: they are small, and all that follows is made of them."""


def group_of(architecture: str, role: Role) -> tuple[Role, ...]:
    """The roles whose rows are stored in one matrix with this one, in order."""
    return tuple(Role(name, role.layer) for name in ARCHITECTURES[architecture].group(role.name))


def module_of(architecture: str, role: Role) -> str:
    """The path of the module that has a weight."""
    names = {**ARCHITECTURES[architecture].names, **ARCHITECTURES[architecture].openvino}
    return full_name(role.name, names[role.name], role.layer)


def output_tensors(model: Model) -> list[OutputTensor]:
    """The weights of an IR, in the order in which the decoder uses them.

    Raises:
        UnsupportedModelError: A file of plain tensors.
    """
    if model.architecture is None or model.forward is None:
        raise UnsupportedModelError(
            "OpenVINO cannot run plain tensors without a config.json",
            path=model.path,
            hint="give a model folder",
        )
    tensors = list(_tensors(with_own_head(model), model.architecture))
    if model.senses is not None and model.senses.vision is not None:
        tensors += _encoder_tensors(model.senses.vision)
    return tensors


def with_own_head(model: Model) -> Model:
    """The model with a head of its own where the embedding, which is the head too, goes to another file."""
    head, embedding = Role("output"), Role("token_embedding")
    if model.senses is None or head in model.tensors:
        return model
    return replace(model, tensors={**model.tensors, head: model.tensors[embedding]})


def _encoder_tensors(encoder: Encoder) -> Iterator[OutputTensor]:
    """Those of the graphs of an encoder, under the checkpoint's names."""
    for role, tensor in encoder.tensors.items():
        if role.name not in SEPARATORS:
            plain = len(tensor.shape) == 1 or role.name in _PLACES
            yield OutputTensor(encoder.names[role], tensor, role, ir.F32 if plain else None)


def _tensors(model: Model, architecture: str) -> Iterator[OutputTensor]:
    for role in _in_use(model):
        group = group_of(architecture, role)
        if group[0] != role:
            continue
        path = module_of(architecture, role)
        for part in ("weight", "bias"):
            parts = [member._replace(part=part) for member in group]
            if parts[0] in model.tensors:
                tensor = join([model.tensors[member] for member in parts])
                required = ir.F32 if len(tensor.shape) == 1 else None
                yield OutputTensor(f"{path}.{part}", tensor, parts[0], required)


def _in_use(model: Model) -> tuple[Role, ...]:
    """The roles of the weights, each where the decoder first asks for it."""
    recorder = Recorder()
    assert model.hyperparameters is not None  # noqa: S101 - wherever there is a decoder
    cast("Forward", model.forward)(recorder, model.hyperparameters)
    return tuple(dict.fromkeys(role for call in recorder.calls for role in call.roles))
