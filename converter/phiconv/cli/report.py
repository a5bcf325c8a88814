"""What a person, or a program with ``--json``, looks at."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from phiconv.errors import printable
from phiconv.quantizers import compiled
from phiconv.units import size_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from phiconv.api import Result
    from phiconv.conversion.pipeline import Progress
    from phiconv.conversion.plans import Plan

__all__ = [
    "plan_lines",
    "plan_object",
    "progress_display",
    "result_lines",
    "result_object",
    "shape_text",
    "table",
]

# Buffers of one worker: a tile as stored, as float32, as codes, as packed bytes, and the quantizer's scratch.
_MEMORY_PER_JOB = 8 << 20
_MEMORY_BASE = 40 << 20
_LONGEST_PATH = 4096


def shape_text(shape: Iterable[int]) -> str:
    """The sizes of a tensor's dimensions."""
    return " x ".join(map(str, shape)) or "scalar"


def _path(path: Path) -> str:
    """A path on one line, however long."""
    return printable(path, _LONGEST_PATH)


def table(rows: Sequence[tuple[str, ...]], right: frozenset[int] = frozenset()) -> list[str]:
    """Aligned columns; those in ``right`` are numbers."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))] if rows else []
    cells = (
        [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))]
        for r in rows
    )
    return ["  " + "  ".join(row).rstrip() for row in cells]


# ----------------------------------------------------------------------------------------------------- plan


def plan_object(plan: Plan) -> dict[str, Any]:
    """A plan, for ``--json``."""
    return {
        "source": str(plan.model.path),
        "target": plan.target,
        "recipe": plan.recipe,
        "files": [
            {"path": str(p), "bytes": f.size} for p, f in zip(plan.files, plan.package.files, strict=True)
        ],
        "bytes": plan.size,
        "receipt": _receipt(plan),
        "bits_per_weight": plan.bits_per_weight,
        "free_bytes": plan.free_space,
        "memory_bytes": _memory(plan),
        "notes": list(plan.package.notes),
        "tensor_types": _tensor_types(plan),
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "from": t.stored.name,
                "to": t.encoding.name,
                "bytes": t.nbytes,
                "action": t.action,
            }
            for t in plan.tensors
        ],
    }


def plan_lines(plan: Plan) -> list[str]:
    """A plan, for people."""
    rows = [
        (
            printable(t.name),
            shape_text(t.shape),
            t.stored.name,
            "->",
            t.encoding.name,
            size_text(t.nbytes),
            t.action,
        )
        for t in plan.tensors
    ]
    actions = Counter(t.action for t in plan.tensors)
    return [
        f"{_path(plan.model.path)} -> {plan.target} {plan.recipe}",
        *table(rows, frozenset({5})),
        *(f"{_path(p)}: {f.size} bytes" for p, f in zip(plan.files, plan.package.files, strict=True)),
        *(f"{_path(receipt['path'])}: {receipt['bytes']} bytes" for receipt in [_receipt(plan)] if receipt),
        f"{size_text(plan.size)}, {plan.bits_per_weight:.2f} bits per weight",
        f"tensors: {', '.join(f'{count} {action}' for action, count in actions.most_common())}",
        *_mixture_lines(plan),
        f"{size_text(plan.free_space)} free; memory about {size_text(_memory(plan))}",
        *(f"note: {printable(n)}" for n in plan.package.notes),
    ]


def _receipt(plan: Plan) -> dict[str, Any] | None:
    """The receipt, and its size."""
    if plan.receipt is None:
        return None
    return {"path": str(plan.receipt_path), "bytes": plan.receipt.file().size}


def _tensor_types(plan: Plan) -> list[str]:
    """The types that were chosen for a size, as ``--tensor-type`` takes them."""
    return [f"{pattern}={name}" for pattern, name in plan.mixture]


def _mixture_lines(plan: Plan) -> list[str]:
    """The options that give the same again, without choosing."""
    if not plan.mixture:
        return []
    options = [f"--quant {plan.recipe}", *(f"--tensor-type {shlex.quote(t)}" for t in _tensor_types(plan))]
    return [
        "chosen for this size; the same again with",
        *(f"  {printable(option, 4096)}" for option in options),
    ]


def _memory(plan: Plan) -> int:
    from phiconv.conversion.pipeline import worth_processes  # an inspection needs none of it

    jobs = os.cpu_count() or 1
    processes = jobs if jobs > 1 and worth_processes(plan.package, in_compiled=compiled.available()) else 0
    widest = max((t.tensor.columns for t in plan.package.streams), default=0)
    head = sum(len(data) for f in plan.package.files for _, data in f.chunks)
    return (1 + processes) * _MEMORY_BASE + jobs * max(_MEMORY_PER_JOB, 16 * widest) + 4 * head


# --------------------------------------------------------------------------------------------------- result


def result_object(result: Result, run: str | None) -> dict[str, Any]:
    """A finished conversion, for ``--json``, with the command that runs it."""
    plan = result.plan
    return {
        "files": [str(p) for p in result.files],
        "bytes": result.size,
        "receipt": None if result.receipt is None else str(result.receipt),
        "seconds": round(result.seconds, 3),
        "target": plan.target,
        "recipe": plan.recipe,
        "bits_per_weight": plan.bits_per_weight,
        "notes": list(result.notes),
        "run": run,
        "tensor_types": _tensor_types(plan),
        "tensors": [
            {"name": t.name, "type": s.encoding.name, "nonfinite": t.nonfinite, "overflows": t.overflows}
            for t, s in zip(result.tensors, plan.package.streams, strict=True)
        ],
    }


def result_lines(result: Result, run: str | None) -> list[str]:
    """A finished conversion, for people; last, and by itself on a line, the command that runs it."""
    plan = result.plan
    names = (
        str(result.files[0])
        if len(result.files) == 1
        else f"{result.files[0]} and {len(result.files) - 1} more"
    )
    lines = [
        (
            f"{printable(names)}: {plan.recipe}, {size_text(result.size)}, "
            f"{plan.bits_per_weight:.2f} bits per weight, {result.seconds:.1f} s"
        )
    ]
    for tensor in result.tensors:
        if tensor.nonfinite:
            lines.append(f"warning: {printable(tensor.name)}: {tensor.nonfinite} weights are NaN or infinite")
        if tensor.overflows:
            lines.append(f"warning: {printable(tensor.name)}: {tensor.overflows} values became infinite")
    lines += [*_mixture_lines(plan), *(f"note: {printable(n, 600)}" for n in result.notes)]
    return lines if run is None else [*lines, "run it with", f"  {run}"]


# ------------------------------------------------------------------------------------------------- progress


@contextlib.contextmanager
def progress_display(*, quiet: bool) -> Iterator[Progress | None]:
    """Progress on stderr: a bar on a terminal, else a line every few seconds, nothing if ``quiet``."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _plain_progress()


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    name = TextColumn("{task.description}", markup=False)  # it is of a file
    columns = (name, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def update(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=printable(name, 40))

        yield update


def _plain_progress(interval: float = 5.0) -> Progress:
    started = last = time.monotonic()

    def update(done: int, total: int, name: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done and now - last >= interval:
            last = now
            left = (now - started) * (total - done) / done
            sys.stderr.write(f"{100 * done // total:3d} %, about {left:.0f} s left, {printable(name, 60)}\n")

    return update
