"""``--effort best``, one matrix after the other: each makes up for what those before it have changed.

By the time an input reaches a matrix, the matrices before it have been quantized and it is no longer what it
was. So two streams of the calibration's tokens go through the decoder: one through the model as it is, and
one through what is quantized already. A matrix W is given the target whose outputs, from the second stream,
come nearest to those that W has from the first one; where its output is added to the residual stream, the
sums are compared. The target is quantized as always.

    W + (W (x - x') x'^T + (r - r') x'^T) / N * (H' + shrinkage * diag(H'))^-1,    H' = x' x'^T / N

It takes many tokens for each column to know these correlations, and all of them twice through the decoder.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from phiconv.conversion import effort
from phiconv.conversion.drift import BATCH, Target, Value
from phiconv.conversion.outputs import check_space
from phiconv.conversion.stored_blocks import StoredBlocks
from phiconv.conversion.unfinished import scratch, unfinished_folder
from phiconv.forward import threads
from phiconv.forward.interpreter import NumpyOps
from phiconv.forward.ops import ATTENTION_ROLES, check_weights, output_matrix
from phiconv.forward.stages import values_of
from phiconv.ir import AnyBlockEncoding, Blocks, FloatEncoding, Tensor
from phiconv.quantizers import decode, encode
from phiconv_formats import FORMATS
from phiconv_formats.shared.output import joined_roles, roles_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from phiconv.conversion.plans import Plan
    from phiconv.forward.layers import Array
    from phiconv.forward.ops import Call, Forward
    from phiconv.ir import Encoding, FloatArray
    from phiconv.ir.model import Model, Role
    from phiconv.ir.moments import Moments

__all__ = ["pays", "sequenced"]

_TOKENS_PER_COLUMN = 12
"""Fewer do not tell correlations from chance: by then the gain is a few per cent."""

_ROWS = 256
"""Rows of a matrix that are quantized at a time."""

_MARGIN = 0.75
"""What is not better by as much may be worse on another text."""


def pays(plan: Plan) -> bool:
    """Whether a plan's matrices are to be quantized one after the other.

    That is so for dense models of floats whose calibration has many tokens for each column, and keeps them;
    not from one GGUF to another one.
    """
    model, calibration = plan.model, plan.calibration
    hp = model.hyperparameters
    if calibration is None or hp is None or model.forward is None or hp.experts is not None:
        return False
    tokens = sum(calibration.manifest.tokens.values())
    floats = all(isinstance(tensor.encoding, FloatEncoding) for tensor in model.tensors.values())
    best_ones = [o for o, s in zip(plan.outputs, plan.package.streams, strict=True) if s.moments is not None]
    return (
        floats
        and calibration.windows is not None
        and tokens >= _TOKENS_PER_COLUMN * hp.hidden_size
        and bool(best_ones)
        and all(output.role is not None for output in best_ones)  # else tensors are copied as they are
    )


@contextmanager
def sequenced(
    plan: Plan, progress: Callable[[int, int, str], None] | None = None, *, shared: bool = False
) -> Iterator[Plan]:
    """Quantizes the matrices of a plan one after the other, if that pays.

    Args:
        plan: The plan.
        progress: Is told how far it is.
        shared: What is quantized lies where whoever sees the output sees it.

    Yields:
        A plan that stores what was quantized.
    """
    if not pays(plan):
        yield plan
        return
    with scratch(unfinished_folder(plan) if shared else None) as folder:
        check_space(folder, _space(plan))
        walk = _Walk(plan, folder)
        with threads.parallel(), np.errstate(all="ignore"):
            walk.run(progress)
        model = replace(plan.model, tensors=walk.tensors)
        writer = FORMATS[plan.target].writer
        assert writer is not None  # noqa: S101 - there is a plan for it
        outputs = writer().tensors(model)
        streams = tuple(
            replace(stream, tensor=output.tensor, moments=None)
            if output.tensor.encoding == stream.encoding and isinstance(stream.encoding, AnyBlockEncoding)
            else stream
            for stream, output in zip(plan.package.streams, outputs, strict=True)
        )
        yield replace(plan, package=replace(plan.package, streams=streams))


def _space(plan: Plan) -> int:
    """Bytes that the work takes on the disk, about: a code in a byte, and what the tokens are in a layer."""
    hp, calibration = plan.model.hyperparameters, plan.calibration
    assert hp is not None  # noqa: S101 - see `pays`
    assert calibration is not None  # noqa: S101
    widths = 4 * hp.hidden_size + 2 * hp.intermediate_size
    return sum(s.tensor.size for s in plan.package.streams) + 8 * widths * sum(
        calibration.manifest.tokens.values()
    )


class _Walk:
    """Goes through the decoder, quantizing on the way.

    Attributes:
        tensors: The weights by role, with those that are quantized so far.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        assert plan.calibration is not None  # noqa: S101 - see `pays`
        assert plan.calibration.windows is not None  # noqa: S101
        self._model, self._calibration, self._folder = plan.model, plan.calibration, folder
        self._encodings = _encodings(plan)
        self._ids = plan.calibration.windows
        self.tensors = dict(plan.model.tensors)
        self._values: dict[int, Value] = {}

    def run(self, progress: Callable[[int, int, str], None] | None) -> None:
        """Takes all tokens through all calls, and quantizes every matrix before it is used."""
        model = self._model
        assert model.hyperparameters is not None  # noqa: S101 - see `pays`
        calls = check_weights(
            cast("Forward", model.forward), model.hyperparameters, model.tensors, model.path
        )
        last_use = {value: number for number, call in enumerate(calls) for value in values_of(call)}
        for number, call in enumerate(calls):
            for role in _matrices(call, model):
                residual = _residual(number, calls, self._values)
                self._quantize(role, values_of(call)[:1], residual)
            if call.operation != "logits":
                self._values[number] = self._compute(number, call)
            for value in [v for v in self._values if last_use.get(v, number) <= number]:
                self._values.pop(value).release()
            if progress is not None:
                progress(number + 1, len(calls), "quantizing one matrix after the other")

    def _compute(self, number: int, call: Call) -> Value:
        """A call, for all tokens in both streams."""
        needed = [self._values[value] for value in values_of(call)]
        rest = call.arguments[len(needed) :]
        length = self._ids.shape[1]
        step = max(BATCH // length, 1)
        result: Value | None = None
        for start in range(0, len(self._ids), step):
            ids = self._ids[start : start + step]
            place = slice(start * length, start * length + ids.size)
            found: list[Array] = []
            for tensors, name in ((self._model.tensors, "exact"), (self.tensors, "actual")):
                ops: Any = NumpyOps(tensors, ids, np.dtype(np.float32))
                inputs = [np.array(getattr(value, name)[place]) for value in needed]
                found.append(getattr(ops, call.operation)(*inputs, *rest))
            if result is None:
                result = self._value(number, found[0].shape[1])
            result.exact[place], result.actual[place] = found
        assert result is not None  # noqa: S101 - there are tokens
        return result

    def _value(self, number: int, width: int) -> Value:
        files = tuple(self._folder / f"{number}.{name}.npy" for name in ("exact", "actual"))
        shape = (self._ids.size, width)
        exact, actual = (np.lib.format.open_memmap(file, "w+", np.float32, shape) for file in files)
        return Value(exact, actual, files)

    def _quantize(self, role: Role, inputs: Sequence[int], residual: Value | None) -> None:
        """Quantizes a matrix and lets the second stream use it from now on."""
        encoding, tensor = self._encodings.get(role), self._model.tensors[role]
        if encoding is None or self.tensors[role] is not tensor or tensor.size == 0:
            return
        moments = effort.moments_of(role, False, self._model, self._calibration, 0)
        amounts = None if moments is None else effort.amounts(tensor, encoding, moments)
        value = self._values[inputs[0]] if inputs else None
        stored = StoredBlocks(self._folder / str(role), tensor, encoding)
        if moments is None or amounts is None:
            _fill(stored, tensor, lambda rows, _: _encoded(rows, encoding))
        else:
            plain = Target.plain(moments, amounts)
            target = plain if value is None else Target.of(tensor, value, residual, amounts)
            _fill(stored, tensor, partial(target.quantize, encoding=encoding))
            if target is not plain and not _holds(stored, tensor, moments):
                _fill(stored, tensor, partial(plain.quantize, encoding=encoding))
        self.tensors[role] = Tensor.of(stored, tensor.shape)


def _encoded(rows: FloatArray, encoding: AnyBlockEncoding) -> Blocks:
    blocks = encode(rows, encoding)
    assert isinstance(blocks, Blocks)  # noqa: S101 - it is a block encoding
    return blocks


def _tiles(tensor: Tensor) -> Iterator[tuple[int, FloatArray]]:
    for start in range(0, tensor.rows, _ROWS):
        yield start, decode(tensor.read(start, min(start + _ROWS, tensor.rows)), tensor.columns)


def _fill(stored: StoredBlocks, tensor: Tensor, quantize: Callable[[FloatArray, int], Blocks]) -> None:
    """Quantizes all rows; ``quantize`` is given some, and the number of the first one."""

    def work(start: int) -> None:
        stop = min(start + _ROWS, tensor.rows)
        stored.write(start, quantize(decode(tensor.read(start, stop), tensor.columns), start))

    stored.create(quantize(decode(tensor.read(0, 1), tensor.columns), 0))
    threads.run(partial(work, start) for start in range(0, tensor.rows, _ROWS))


def _holds(stored: StoredBlocks, tensor: Tensor, moments: Moments) -> bool:
    """Whether the outputs are still nearer to those of the matrix itself than with the runtime's own codes.

    That is judged on the inputs that the matrix has in the model as it is, of the text that was kept apart:
    what makes up for a drift is in the way there.
    """
    check, errors = moments.check(), np.zeros(2)
    for start, rows in _tiles(tensor):
        found = decode(stored.read(start, start + len(rows)), tensor.columns)
        own = decode(_encoded(rows, stored.encoding), tensor.columns)
        errors += [float(np.nansum(check.errors(each - rows))) for each in (found, own)]
    return bool(errors[0] <= _MARGIN * errors[1])


def _encodings(plan: Plan) -> dict[Role, AnyBlockEncoding]:
    """What becomes of each matrix that is to get the best codes."""
    found: dict[Role, AnyBlockEncoding] = {}
    for output, stream, role in zip(
        plan.outputs, plan.package.streams, roles_of(plan.outputs, plan.model), strict=True
    ):
        encoding: Encoding = stream.encoding
        if role is None or stream.moments is None or not isinstance(encoding, AnyBlockEncoding):
            continue
        for each in joined_roles(role, output.tensor, plan.model):
            found[each] = encoding
    return found


def _matrices(call: Call, model: Model) -> tuple[Role, ...]:
    """The matrices that a call uses."""
    if call.operation == "attention":
        return tuple(role for role in call.roles if role.name in ATTENTION_ROLES)
    if call.operation == "logits":
        return (output_matrix(model.tensors),)
    return call.roles if call.operation in {"embed", "linear", "gated"} else ()


def _residual(number: int, calls: Sequence[Call], values: dict[int, Value]) -> Value | None:
    """What the result of a call is added to, where that is known by then."""
    for call in calls[number + 1 :]:
        if number in values_of(call):
            others = [v for v in values_of(call) if v != number] if call.operation == "add" else []
            return values.get(others[0]) if others else None
    return None
