"""The library's functions; ``import phiconv`` offers them without importing NumPy before one is used."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from phiconv.conversion import pipeline
from phiconv.conversion.adapters import merge
from phiconv.conversion.machines import machines
from phiconv.conversion.paths import expanded
from phiconv.conversion.plans import Plan
from phiconv.conversion.requests import planned
from phiconv.conversion.sequential import sequenced
from phiconv.conversion.source import Examination, examine, open_model
from phiconv.conversion.unfinished import unfinished_work
from phiconv.errors import UnsupportedModelError, UsageError
from phiconv.ir import RawEncoding
from phiconv.ir.model import Model
from phiconv.quality.beside import calibrated
from phiconv.quality.comparison import Comparison, compare
from phiconv.quality.text import Evaluation, calibrate, evaluate, evaluate_all, generate, logits
from phiconv.quantizers import decode
from phiconv.recipes import Choices
from phiconv.reporting.numbers import Report
from phiconv.reporting.writing import report
from phiconv.verification.again import planned_again
from phiconv.verification.judging import judge
from phiconv.verification.outcome import Finding, Verification
from phiconv_formats.shared.links import following_links

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from os import PathLike
    from pathlib import Path

    from phiconv.conversion.adapters import Lora
    from phiconv.conversion.pipeline import Progress, TensorReport
    from phiconv.ir import FloatArray, Tensor
    from phiconv.verification.stated import Stated
    from phiconv_formats.onnx.compilation import Compiled

__all__ = [
    "Choices",
    "Comparison",
    "Evaluation",
    "Examination",
    "Finding",
    "Model",
    "Plan",
    "Report",
    "Result",
    "Verification",
    "calibrate",
    "compare",
    "compile_qnn",
    "convert",
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
    "verify",
]


@dataclass(frozen=True, slots=True)
class Result:
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
    return planned(
        source,
        destination,
        choices=choices or Choices(),
        to=to,
        quant=quant,
        split_max_size=split_max_size,
        lora=lora,
        base=base,
        adapter_only=adapter_only,
        repack_only=repack_only,
        receipt=receipt,
        others={"imatrix": imatrix, "calibration": calibration, "ranges": ranges, "config": config},
    )


def convert(
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
) -> Result:
    """Converts a model; either the whole output appears, or nothing.

    Args:
        source: A path, as `open_model` takes it, or an open model.
        destination: A file whose suffix names the format (``x.gguf``), or a folder, with ``to``.
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

    Raises:
        InputError: Something is wrong with the source.
        OutputError: Something is wrong with the destination.
        UsageError: Options that do not go together.
        WorkerError: A process was ended by somebody else.
    """
    started = time.perf_counter()
    planning = partial(plan, split_max_size=split_max_size, imatrix=imatrix, config=config, ranges=ranges)
    planning = partial(
        planning, to=to, quant=quant, choices=choices, repack_only=repack_only, receipt=receipt
    )
    adapters: dict[str, Any] = {"lora": lora, "base": base, "adapter_only": adapter_only}
    first = planning(source, destination, calibration=calibration, **adapters)
    again = partial(planning, first.model, destination)
    with (
        calibrated(first, again, text, calibration_tokens, force=force, progress=progress) as planned_best,
        sequenced(planned_best, progress) as made,
        unfinished_work(made) as unfinished,
    ):
        notes = [*made.package.notes]
        where: dict[str, Any] = {"executor": executor, "jobs": jobs, "processes": processes, "force": force}
        told: dict[str, Any] = {"progress": progress, "note": notes.append, "receipt": made.receipt}
        where |= {"source": made.model.path, "allow_nonfinite": allow_nonfinite}
        reports = pipeline.run(made.package, made.folder, unfinished=unfinished, **where, **told)
    seconds = time.perf_counter() - started
    return Result(made, made.files, made.size, seconds, tuple(reports), tuple(notes), made.receipt_path)


def verify(
    output: str | PathLike[str],
    *,
    source: str | PathLike[str] | None = None,
    receipt: str | PathLike[str] | None = None,
    imatrix: str | PathLike[str] | None = None,
    calibration: str | PathLike[str] | None = None,
    ranges: str | PathLike[str] | None = None,
    config: str | PathLike[str] | None = None,
    lora: Sequence[Lora] = (),
    base: str | PathLike[str] | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Checks an output against its receipt; with the source it is made again, and every byte compared.

    Nothing is written. Without a source the receipt is believed: whoever changes both is not found.

    Args:
        output: A file or a folder that `convert` wrote.
        source: What it was made of. Only its files count, and not where they are.
        receipt: Its receipt, where it is not beside it.
        imatrix: What else `convert` was given; the receipt says the options.
        calibration: Likewise.
        ranges: Likewise.
        config: Likewise.
        lora: Likewise, in the same order; the receipt has their weights.
        base: Likewise.
        jobs: Number of threads; by default one per processor.
        progress: Is told how far it is.

    Raises:
        MissingFileError: There is no such output.
        UsageError: Something that is for making it again, and no source.
    """
    given = {"calibration": calibration, "imatrix": imatrix, "ranges": ranges, "config": config}
    others = {"base": base, **given}
    if source is None and (lora or any(path is not None for path in others.values())):
        raise UsageError("nothing is made again without a source", hint="give --source")

    @contextmanager
    def again(stated: Stated) -> Iterator[Plan]:
        assert source is not None  # noqa: S101 - it is called only then
        with planned_again(stated, expanded(source), lora, base, given) as made, sequenced(made) as done:
            yield done

    roles = {role for role, path in others.items() if path is not None}
    return judge(
        expanded(output),
        None if receipt is None else expanded(receipt),
        None if source is None else again,
        {*roles, *(f"lora-{number}" for number in range(len(lora)))},
        jobs=jobs,
        progress=progress,
    )


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
    from phiconv_formats.onnx.compilation import SOCS, compile_folder, find_soc

    folder, number = expanded(source), find_soc(soc)
    name = f"{folder.resolve().name}-{SOCS[number]}"
    place = folder.resolve().with_name(name) if destination is None else expanded(destination)
    return compile_folder(folder, place, number, share=share, progress=progress)


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
    if isinstance(tensor.encoding, RawEncoding):
        raise UnsupportedModelError(
            f"stored as {tensor.encoding.name}, which phiconv cannot decode", path=tensor.label
        )
    last = tensor.rows if stop is None else stop
    values = decode(tensor.read(start, last), tensor.columns)
    return values.reshape(tensor.shape) if (start, last) == (0, tensor.rows) else values
