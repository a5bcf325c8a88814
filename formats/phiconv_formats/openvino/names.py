"""Under which names an IR stores the weights: those of Hugging Face checkpoints, fused where they are."""

from __future__ import annotations

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

__all__ = ["group_of", "module_of", "output_tensors"]


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
    return list(_tensors(model, model.architecture))


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
