"""Under which names a graph stores the weights: those of Hugging Face checkpoints, each role by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.architectures import ARCHITECTURES
from phiconv.architectures.architecture import full_name
from phiconv.errors import UnsupportedModelError
from phiconv.forward.ops import Recorder
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from phiconv.ir.model import Model, Role

__all__ = ["name_of", "output_tensors"]


def name_of(architecture: str, role: Role) -> str:
    """The name of a weight."""
    path = full_name(role.name, ARCHITECTURES[architecture].apart(role.name), role.layer)
    return f"{path}.{role.part}"


def output_tensors(model: Model) -> list[OutputTensor]:
    """The weights of a graph, in the order in which the decoder uses them.

    Raises:
        UnsupportedModelError: A file of plain tensors, or a mixture of experts.
    """
    if model.architecture is None or model.forward is None or model.hyperparameters is None:
        raise UnsupportedModelError(
            "LiteRT cannot run plain tensors without a config.json",
            path=model.path,
            hint="give a model folder",
        )
    if model.hyperparameters.experts is not None:
        raise UnsupportedModelError(
            "LiteRT has no operation for a mixture of experts: it would compute all of them for every token",
            path=model.path,
            hint="choose another format, such as gguf",
        )
    recorder = Recorder()
    model.forward(recorder, model.hyperparameters)
    roles = dict.fromkeys(role for call in recorder.calls for role in call.roles)
    result = []
    for role in roles:
        for part in ("weight", "bias"):
            own = role._replace(part=part)
            if own in model.tensors:
                tensor = model.tensors[own]
                required = ir.F32 if len(tensor.shape) == 1 else None
                result.append(OutputTensor(name_of(model.architecture, own), tensor, own, required))
    return result
