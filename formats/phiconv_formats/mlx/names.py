"""What mlx-lm calls the weights of a model, and in which order it stores them; then what a model sees with.

A module of its network is a path, the hub's unless the architecture says otherwise; the matrix is
``<path>.weight``, an additive bias ``<path>.bias``. Experts are stacked, fused matrices stay fused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from phiconv import ir
from phiconv.architectures import ARCHITECTURES
from phiconv.architectures.architecture import full_name
from phiconv.errors import UnsupportedModelError
from phiconv.ir.model import Role
from phiconv.quantizers.joining import join
from phiconv_formats.mlx.vision import encoder_tensors, runtime_name
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from phiconv.architectures import Architecture
    from phiconv.ir.model import Model

__all__ = ["announced_biases", "output_tensors"]


class _Module(NamedTuple):
    """A part of mlx-lm's network that has weights: its path, and the roles whose rows it joins."""

    path: str
    roles: tuple[Role, ...]


def output_tensors(model: Model) -> list[OutputTensor]:
    """The weights of an MLX folder, in mlx-lm's order.

    Raises:
        UnsupportedModelError: A file of plain tensors.
    """
    hp = model.hyperparameters
    if model.architecture is None or hp is None:
        raise UnsupportedModelError(
            "mlx-lm cannot run plain tensors without a config.json",
            path=model.path,
            hint="give a model folder",
        )
    architecture = ARCHITECTURES[model.architecture]
    biases = {*architecture.biases, *architecture.mlx.biases}
    for roles in announced_biases(architecture, model.tensors).values():
        biases.update(roles)
    result: list[OutputTensor] = []
    tied = architecture.mlx.tied and model.senses is None  # mlx-vlm's classes have a head of their own
    for module in _modules(architecture, hp.num_hidden_layers):
        result += _of_module(module, model.tensors, biases, tied=tied)
    if model.senses is None:
        return result
    kind = model.senses.kind
    return [*(replace(t, name=runtime_name(kind, t.name)) for t in result), *encoder_tensors(model)]


def announced_biases(
    architecture: Architecture, tensors: Mapping[Role, ir.Tensor]
) -> dict[str, tuple[str, ...]]:
    """The keys of config.json that should say that there are biases, and the roles that then have one."""
    present = {role.name for role in tensors if role.part == "bias"}
    return {key: roles for key, roles in architecture.bias_keys.items() if present & {*roles}}


def _modules(architecture: Architecture, layers: int) -> Iterator[_Module]:
    """Every module in the runtime's order."""
    names = {**architecture.names, **architecture.mlx.names}

    def module(name: str, layer: int | None) -> _Module:
        group = architecture.group(name)
        return _Module(full_name(name, names[name], layer), tuple(Role(each, layer) for each in group))

    yield module("token_embedding", None)
    for n in range(layers):
        for name in architecture.mlx.order:
            if architecture.group(name)[0] == name:
                yield module(name, n)
    yield module("output_norm", None)
    yield module("output", None)


def _of_module(
    module: _Module, tensors: Mapping[Role, ir.Tensor], biases: set[str], *, tied: bool
) -> Iterator[OutputTensor]:
    roles = module.roles
    first = roles[0]
    if first.name == "output" and first not in tensors:
        if tied:
            return
        roles = (Role("token_embedding"),)
    weight = join([tensors[role] for role in roles])
    yield OutputTensor(f"{module.path}.weight", weight, first)
    bias = first._replace(part="bias")
    if bias in tensors:
        yield OutputTensor(f"{module.path}.bias", tensors[bias], bias)
    elif first.name in biases:
        zeros = ir.constant([0.0] * weight.shape[0], f"{module.path}.bias, which is zero")
        yield OutputTensor(f"{module.path}.bias", zeros, bias)
