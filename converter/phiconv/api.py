"""The library's functions; ``import phiconv`` offers them without importing NumPy before one is used."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

from phiconv.brief import Brief
from phiconv.conversion.adapters import Lora, merge
from phiconv.conversion.paths import expanded
from phiconv.conversion.source import Examination, examine, open_model
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv.ir import RawEncoding, Tensor
from phiconv.ir.model import Hyperparameters, Model
from phiconv.tokenization.tokenizer import Tokenizer
from phiconv_formats.shared.links import following_links

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from os import PathLike
    from pathlib import Path

    from phiconv.conversion.cancelling import Cancel
    from phiconv.conversion.machines import machines
    from phiconv.conversion.pipeline import Progress, TensorReport
    from phiconv.conversion.plans import Plan, TensorPlan
    from phiconv.ir import FloatArray
    from phiconv.quality.comparison import Comparison, Difference, TensorDifference, compare
    from phiconv.quality.scores import Divergence
    from phiconv.quality.text import (
        Evaluation,
        calibrate,
        decode,
        encode,
        evaluate,
        evaluate_all,
        generate,
        logits,
    )
    from phiconv.recipes import Choices
    from phiconv.reporting.numbers import Report
    from phiconv.reporting.writing import report
    from phiconv.verification.checking import sign, verify
    from phiconv.verification.outcome import Finding, Verification
    from phiconv_formats.onnx.compilation import Compiled

__all__ = [
    "Choices",
    "Comparison",
    "Difference",
    "Divergence",
    "Evaluation",
    "Examination",
    "Finding",
    "Hyperparameters",
    "Lora",
    "Model",
    "Plan",
    "Progress",
    "Report",
    "Result",
    "Tensor",
    "TensorDifference",
    "TensorPlan",
    "TensorReport",
    "Tokenizer",
    "Verification",
    "calibrate",
    "compare",
    "compile_qnn",
    "convert",
    "decode",
    "encode",
    "evaluate",
    "evaluate_all",
    "examine",
    "following_links",
    "generate",
    "logits",
    "machines",
    "merge",
    "open_model",
    "plan",
    "read",
    "report",
    "sign",
    "verify",
]


_WITH_TEXT = {"calibrate", "decode", "encode", "evaluate", "evaluate_all", "generate", "logits"}


def __getattr__(name: str) -> object:
    """What other modules define and nothing here needs: imported when it is first asked for."""
    module: object
    if name in {"Divergence", "Evaluation", *_WITH_TEXT}:
        from phiconv.quality import text as module
    elif name in {"Comparison", "Difference", "TensorDifference", "compare"}:
        from phiconv.quality import comparison as module
    elif name in {"Finding", "Verification", "sign", "verify"}:
        from phiconv.verification import checking as module
    elif name in {"Report", "report"}:
        from phiconv.reporting import writing as module
    elif name == "Choices":
        from phiconv import recipes as module
    elif name in {"Plan", "TensorPlan"}:
        from phiconv.conversion import plans as module
    elif name in {"Progress", "TensorReport"}:
        from phiconv.conversion import pipeline as module
    elif name == "machines":
        from phiconv.conversion import machines as module
    else:
        raise AttributeError(f"module 'phiconv.api' has no attribute {name!r}")
    return getattr(module, name)


_LOG = logging.getLogger("phiconv")
_LOG.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, repr=False)
class Result(Brief):
    """A conversion that is done.

    Attributes:
        plan: What was asked for.
        files: The files that are there now.
        size: Their bytes.
        seconds: Wall time.
        tensors: One report per tensor, in the order of the output.
        notes: What the user should know: the plan's, and what else was done at the destination.
        receipt: The file that says what it was made of, and how; None if there is none.
    """

    SHOWN = ("plan", "files", "size", "seconds", "tensors", "notes", "receipt")

    plan: Plan
    files: tuple[Path, ...]
    size: int
    seconds: float
    tensors: tuple[TensorReport, ...]
    notes: tuple[str, ...] = ()
    receipt: Path | None = None


def plan(
    source: str | PathLike[str] | Model,
    destination: str | PathLike[str],
    *,
    to: str | None = None,
    quant: str | None = None,
    split_max_size: int | None = None,
    choices: Choices | None = None,
    imatrix: str | PathLike[str] | None = None,
    calibration: str | PathLike[str] | None = None,
    ranges: str | PathLike[str] | None = None,
    config: str | PathLike[str] | None = None,
    lora: Sequence[Lora] = (),
    base: str | PathLike[str] | Model | None = None,
    adapter_only: bool = False,
    repack_only: bool = False,
    receipt: bool = True,
) -> Plan:
    """Plans a conversion without reading a weight: every tensor's target type, and exact sizes.

    The arguments and errors are those of `convert`.
    """
    from phiconv.conversion.requests import planned
    from phiconv.recipes import Choices

    asked: dict[str, Any] = {"to": to, "quant": quant, "split_max_size": split_max_size}
    asked |= {"choices": choices or Choices(), "repack_only": repack_only, "receipt": receipt}
    others: dict[str, Any] = {"imatrix": imatrix, "ranges": ranges, "config": config}
    adapters: dict[str, Any] = {"lora": lora, "base": base, "adapter_only": adapter_only}
    made = planned(source, destination, **asked, **adapters, others={"calibration": calibration, **others})
    return replace(made, again=partial(plan, made.model, destination, **asked, **others))


_plan = plan  # `convert` has an argument of that name


def convert(
    source: str | PathLike[str] | Model | None = None,
    destination: str | PathLike[str] | None = None,
    *,
    plan: Plan | None = None,
    to: str | None = None,
    quant: str | None = None,
    split_max_size: int | None = None,
    choices: Choices | None = None,
    imatrix: str | PathLike[str] | None = None,
    calibration: str | PathLike[str] | None = None,
    ranges: str | PathLike[str] | None = None,
    text: str | Sequence[str] | None = None,
    calibration_tokens: int | None = None,
    config: str | PathLike[str] | None = None,
    lora: Sequence[Lora] = (),
    base: str | PathLike[str] | Model | None = None,
    adapter_only: bool = False,
    repack_only: bool = False,
    receipt: bool = True,
    jobs: int | None = None,
    processes: bool = False,
    executor: Executor | None = None,
    force: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Result:
    """Converts a model; either the whole output appears, or nothing.

    Args:
        source: A path, as `open_model` takes it, or an open model.
        destination: A file whose suffix names the format (``x.gguf``), or a folder, with ``to``.
        plan: What `plan` returned, instead of a source, a destination and whatever belongs to a plan.
        to: The format, for a destination that does not name it.
        quant: A preset (``q4``, ``q8``, ``f16``, ``bf16``, ``f32``) or the target's own name (``Q5_1``); by
            default the precision that the source is stored in.
        split_max_size: Most bytes of tensors in one file; None for a single file.
        choices: What you want otherwise than the recipe, tensor by tensor.
        imatrix: An importance matrix, as llama-imatrix writes it; it goes into ``choices``.
        calibration: A folder that `calibrate` wrote, for an effort of "best" (see `Choices`). Without one the
            model is measured first, in a folder beside the destination, which is removed at the end. If the
            conversion is interrupted it stays, and the next one goes on from there.
        ranges: A .json that `calibrate` wrote, for recipes that quantize activations (w8a16, w4a16).
        text: What to measure that on: a text or several. By default the texts that come with phiconv.
        calibration_tokens: About how many tokens of it; 8192 by default.
        config: A folder with config.json and the tokenizer's files, where they are not with the weights.
        lora: Adapters to merge into the model on the way, see `merge`.
        base: The model, where the source is an adapter to merge into it.
        adapter_only: Write the adapter by itself, for llama.cpp to add to the model while it runs.
        repack_only: Refuse a conversion that would change any weight, before one is read.
        receipt: Write down what it was made of, and how, for `verify`: in a file beside the output, or in its
            folder.
        jobs: Number of threads; by default one per processor.
        processes: Use processes rather than threads where quantizing takes long: they get more out of several
            processors, and each takes some 50 MB. A script needs ``if __name__ == "__main__":`` then.
        executor: Any `concurrent.futures.Executor` to work in, instead.
        force: Replace files that exist: an older output as a whole, and nothing that phiconv did not write.
        allow_nonfinite: Convert NaN, infinity and overflows instead of refusing them.
        progress: Is told how far it is.
        cancel: An event, of `threading` as a rule; once it is set, the conversion ends with a CancelledError.

    Raises:
        CancelledError: It was to end; nothing is left of it.
        InputError: Something is wrong with the source.
        OutputError: Something is wrong with the destination.
        UsageError: Options that do not go together.
        WorkerError: A process was ended by somebody else.
    """
    from phiconv.conversion.cancelling import heeding

    asked: dict[str, Any] = {"to": to, "quant": quant, "split_max_size": split_max_size, "choices": choices}
    asked |= {"imatrix": imatrix, "calibration": calibration, "ranges": ranges, "config": config}
    asked |= {"lora": lora, "base": base, "adapter_only": adapter_only, "repack_only": repack_only}
    started = time.perf_counter()
    first = _first_plan(plan, source, destination, asked | {"receipt": receipt})
    made, reports, notes = _carried_out(
        first,
        (text, calibration_tokens),
        {"executor": executor, "jobs": jobs, "processes": processes},
        {"force": force, "progress": heeding(progress, cancel)},
        allow_nonfinite=allow_nonfinite,
    )
    for note in notes:
        _LOG.info("%s", note)
    seconds = time.perf_counter() - started
    _LOG.info("%s: %d bytes in %.1f seconds", made.files[0], made.size, seconds)
    return Result(made, made.files, made.size, seconds, tuple(reports), tuple(notes), made.receipt_path)


def _carried_out(
    first: Plan,
    measured_on: tuple[str | Sequence[str] | None, int | None],
    where: dict[str, Any],
    how: dict[str, Any],
    *,
    allow_nonfinite: bool,
) -> tuple[Plan, list[TensorReport], list[str]]:
    """Measures the model if the best codes are wanted, and writes the output.

    Args:
        first: The plan, before anything is measured.
        measured_on: A text, and how many tokens of it.
        where: What works: "executor", "jobs", "processes".
        how: "force" and "progress".
        allow_nonfinite: See `convert`.

    Returns:
        The plan that was carried out, what happened to each tensor, and the notes.
    """
    from phiconv.conversion import pipeline, sequential, unfinished
    from phiconv.conversion.tasks import Workers
    from phiconv.quality.beside import calibrated

    workers, shared = Workers(where["executor"], where["jobs"]), where["executor"] is not None
    with (
        calibrated(first, *measured_on, **how, workers=workers) as planned_best,
        sequential.sequenced(planned_best, how["progress"], shared=shared) as made,
        unfinished.unfinished_work(made) as kept,
    ):
        notes = [*made.package.notes]
        given: dict[str, Any] = {**where, **how, "allow_nonfinite": allow_nonfinite, "note": notes.append}
        given |= {"unfinished": kept, "source": made.model.path, "receipt": made.receipt}
        return made, pipeline.run(made.package, made.folder, **given), notes


def _first_plan(
    plan: Plan | None,
    source: str | PathLike[str] | Model | None,
    destination: str | PathLike[str] | None,
    asked: dict[str, Any],
) -> Plan:
    """The plan that is given, or one as it is asked for.

    Raises:
        UsageError: Both, or neither.
    """
    if plan is None:
        if source is None or destination is None:
            raise UsageError("convert takes a source and a destination, or a plan")
        return _plan(source, destination, **asked)
    usual = signature(_plan).parameters
    given = [name for name, value in asked.items() if value != usual[name].default]
    given += [n for n, value in (("source", source), ("destination", destination)) if value is not None]
    if given:
        raise UsageError(f"the plan says already what {given[0]} says", hint="give it to phiconv.plan")
    return plan


def compile_qnn(
    source: str | PathLike[str],
    destination: str | PathLike[str] | None = None,
    *,
    soc: str,
    share: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Compiled:
    """Compiles a folder of ``--target qnn`` for one of Qualcomm's processors, with onnxruntime-qnn.

    Args:
        source: The folder.
        destination: A new folder; by default it has the processor's name behind that of the source.
        soc: The processor, by name or number: "SC8380XP", "60", "x-elite".
        share: Store weights once for prompts and single tokens. Qualcomm's simulator loads no
            such binary.
        progress: Is told the name of each graph before it is compiled.

    Raises:
        UnsupportedModelError: The source is no such folder, or the compiler refuses it.
        UsageError: There is no such processor, or no compiler.
        OutputError: The destination is there, or cannot be written.
    """
    from phiconv.conversion.new_folder import new_folder
    from phiconv_formats.onnx.compilation import SOCS, compile_folder, find_soc

    folder, number = expanded(source), find_soc(soc)
    name = f"{folder.resolve().name}-{SOCS[number]}"
    place = folder.resolve().with_name(name) if destination is None else expanded(destination)
    with new_folder(place) as unfinished:
        made = compile_folder(folder, unfinished, number, share=share, progress=progress)
    return replace(made, folder=place)


def read(tensor: Tensor, start: int = 0, stop: int | None = None) -> FloatArray:
    """Reads rows of a tensor as float32, dequantized if need be.

    Args:
        tensor: A tensor of a `Model`.
        start: The first row, of the tensor seen as a matrix.
        stop: The row after the last one; None for all that follow.

    Returns:
        float32: the tensor's own shape if all rows are read, (rows, columns) otherwise.

    Raises:
        UnsupportedModelError: Its numbers are no weights, or of a type that phiconv cannot decode.
    """
    from phiconv.quantizers import decode as dequantize

    if isinstance(tensor.encoding, RawEncoding):
        raise UnsupportedModelError(
            f"stored as {tensor.encoding.name}, which phiconv cannot decode", path=tensor.label
        )
    last = tensor.rows if stop is None else stop
    values = dequantize(tensor.read(start, last), tensor.columns)
    return values.reshape(tensor.shape) if (start, last) == (0, tensor.rows) else values
