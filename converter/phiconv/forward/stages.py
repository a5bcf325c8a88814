"""A decoder in stages: pieces between which only one value is alive, so that each can be computed by itself.

`compute` takes some tokens through all layers. Here a layer, or half of one, takes all tokens: what goes into
a stage and what comes out of it has one vector per token, and may lie on a disk in between. The stages follow
from the calls that the decoder makes, whatever the architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from phiconv.forward import threads
from phiconv.forward.interpreter import NumpyOps, no_model
from phiconv.forward.ops import ATTENTION_ROLES, MixtureOfExperts, check_weights, output_matrix

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from phiconv.forward.interpreter import Watch
    from phiconv.forward.layers import Array
    from phiconv.forward.ops import Call, Forward
    from phiconv.ir.model import Model, Role

__all__ = ["MatrixInput", "Stage", "run_stage", "stages_of", "values_of"]

_VALUES = {"embed": 0, "add": 2}
"""How many of a call's arguments are values: the first ones. One, where it is not said here."""


@dataclass(frozen=True, slots=True)
class MatrixInput:
    """Something that goes into one matrix or more.

    Attributes:
        roles: The matrices. The first one is what a `Watch` is shown it for.
        experts: How many matrices each of them is a stack of; None for no stack.
        used: How many of those a token goes into; 1 for no stack.
    """

    roles: tuple[Role, ...]
    experts: int | None = None
    used: int = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """Some calls of a decoder.

    Attributes:
        calls: By their numbers, in order.
        takes: The number of the value that it starts from; None for the tokens themselves.
        inputs: What goes into matrices meanwhile, in order.
    """

    calls: tuple[tuple[int, Call], ...]
    takes: int | None
    inputs: tuple[MatrixInput, ...]

    @property
    def layer(self) -> int | None:
        """The layer that its matrices are in; None for the output matrix."""
        return self.inputs[0].roles[0].layer if self.inputs else None


def stages_of(model: Model) -> tuple[Stage, ...]:
    """Divides a model's decoder, each stage as short as it can be with a matrix in it.

    Raises:
        UnsupportedModelError: It is a file of plain tensors and no model.
        MalformedFileError: Its weights are not those that its architecture uses.
    """
    if model.forward is None or model.hyperparameters is None:
        raise no_model(model)
    calls = check_weights(cast("Forward", model.forward), model.hyperparameters, model.tensors, model.path)
    inputs = _inputs(calls, model.tensors)
    found: list[Stage] = []
    start, takes = 0, None
    for stop in (*_borders(calls), len(calls)):
        inside = tuple(each for number in range(start, stop) for each in inputs.get(number, ()))
        if inside:
            found.append(Stage(tuple(enumerate(calls))[start:stop], takes, inside))
            start, takes = stop, stop - 1
    return tuple(found)


def _borders(calls: Sequence[Call]) -> list[int]:
    """Before which calls only the value of the call before is alive."""
    borders, oldest = [], len(calls)
    for number in range(len(calls) - 1, 0, -1):
        oldest = min([oldest, *values_of(calls[number])])
        if oldest == number - 1:
            borders.append(number)
    return borders[::-1]


def values_of(call: Call) -> tuple[int, ...]:
    """The numbers of the values that go into a call."""
    return cast("tuple[int, ...]", call.arguments[: _VALUES.get(call.operation, 1)])


def _inputs(calls: Sequence[Call], tensors: Collection[Role]) -> dict[int, list[MatrixInput]]:
    """What goes into matrices, by the number of the first call that it goes into."""
    roles: dict[int, list[Role]] = {}  # by the number of the value
    first: dict[int, int] = {}
    found: dict[int, list[MatrixInput]] = {}
    for number, call in enumerate(calls):
        into = _matrices(call, tensors)
        if into:
            value = values_of(call)[0]
            first.setdefault(value, number)
            roles.setdefault(value, []).extend(into)
        spec = call.arguments[-1]
        if isinstance(spec, MixtureOfExperts):
            gate, up, down = (role for role in call.roles if role.name.startswith("experts_"))
            found[number] = [MatrixInput(r, spec.count, spec.used) for r in ((gate, up), (down,))]
    for value, number in first.items():
        found.setdefault(number, []).insert(0, MatrixInput(tuple(roles[value])))
    return found


def _matrices(call: Call, tensors: Collection[Role]) -> tuple[Role, ...]:
    """The matrices that the value of a call goes into as it is."""
    if call.operation == "attention":
        return tuple(role for role in call.roles if role.name in ATTENTION_ROLES)
    if call.operation == "moe":
        return tuple(role for role in call.roles if role.name == "router")
    if call.operation == "logits":  # a tied embedding is asked for under both of its names
        return tuple(dict.fromkeys((*call.roles, output_matrix(tensors))))
    return call.roles if call.operation in {"linear", "gated"} else ()


def run_stage(
    model: Model, stage: Stage, ids: NDArray[np.intp], x: Array | None, watch: Watch
) -> Array | None:
    """Takes some sequences through a stage, in float32.

    Args:
        model: Its weights are read from its files, each once.
        stage: One of its stages.
        ids: The tokens, shape (batch, length), checked by whoever cut them.
        x: What the stage before gave for them, shape (batch * length, width); None for the first one.
        watch: Is shown what goes into each matrix, the output matrix included.

    Returns:
        The same for the next stage; None after the last one, which computes no logits.
    """
    ops: Any = NumpyOps(model.tensors, ids, np.dtype(np.float32), watch)
    last_use = {value: number for number, call in stage.calls for value in values_of(call)}
    values: dict[int, Array] = {} if stage.takes is None or x is None else {stage.takes: x}
    with threads.parallel(), np.errstate(all="ignore"):
        for number, call in stage.calls:
            needed = values_of(call)
            if call.operation == "logits":
                watch(call.roles[0], values[needed[0]], None)
                return None
            rest = call.arguments[len(needed) :]
            values[number] = getattr(ops, call.operation)(*(values[n] for n in needed), *rest)
            for value in {n for n in needed if last_use[n] == number}:
                del values[value]
    return values[stage.calls[-1][0]]
