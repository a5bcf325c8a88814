"""What a Dask cluster adds: the same work on this machine, and on workers of it.

    python benchmarks/machines.py MODEL [--work convert calibrate ...] [--workers 3] [--tokens 8192]

All workers are processes of this machine, so nothing is faster here: what is measured is the overhead. CPU
seconds are those of all processes, the scheduler included. All outputs are compared byte by byte.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Where = dict[str, Any]


class Work:
    """What may be asked for, by name: each writes files into a folder.

    Args:
        model: What is read.
        quant: What it is converted to.
        tokens: How many of a text are computed.
    """

    def __init__(self, model: Path, quant: str, tokens: int) -> None:
        import phiconv
        from phiconv.quality.texts import supplied_texts

        self.phiconv, self.model, self.quant, self.tokens = phiconv, model, quant, tokens
        self.words = "\n".join(supplied_texts().values())

    def convert(self, folder: Path, where: Where) -> None:
        self.phiconv.convert(self.model, folder / "x.gguf", quant=self.quant, **where)

    def best(self, folder: Path, where: Where) -> None:
        """Measures, and then finds the best codes."""
        choices, output = self.phiconv.Choices(effort="best"), folder / "x.gguf"
        options = {"choices": choices, "calibration_tokens": self.tokens, **where}
        self.phiconv.convert(self.model, output, quant=self.quant, **options)

    def imatrix(self, folder: Path, where: Where) -> None:
        self._calibrate(folder / "x.gguf", where)

    def calibrate(self, folder: Path, where: Where) -> None:
        self._calibrate(folder / "x", where)

    def _calibrate(self, output: Path, where: Where) -> None:
        where = {key: value for key, value in where.items() if key != "processes"}
        self.phiconv.calibrate(self.model, None, output, tokens=self.tokens, **where)

    def evaluate(self, folder: Path, where: Where) -> None:
        where = {key: value for key, value in where.items() if key != "processes"}
        model = self.phiconv.open_model(self.model)
        ids = self.ids(model)[: self.tokens]
        found = self.phiconv.evaluate(model, ids, **where)
        (folder / "figures").write_text(repr(found), encoding="utf-8")

    def ids(self, model: Any) -> list[int]:
        from phiconv.tokenization.encoder import encode

        return [*encode(model.tokenizer, self.words)]


WORKS = ("convert", "imatrix", "calibrate", "evaluate", "best")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=["convert"])
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    work = Work(options.model.resolve(), options.quant, options.tokens)
    print(f"{'':44}{'CPU s':>8}{'wall s':>8}")
    for name in options.work:
        compared(name, getattr(work, name), work.model, options.workers)


def compared(name: str, work: Callable[[Path, Where], None], model: Path, workers: int) -> None:
    """Does some work here, and on workers; prints what both took."""
    with tempfile.TemporaryDirectory(prefix="phiconv-bench-") as root:
        here, there = (Path(root) / place for place in ("here", "there"))
        for jobs in (1, os.cpu_count() or 1) if name in {"convert", "best"} else (None,):
            here = Path(root) / f"here-{jobs}"
            here.mkdir()
            before = used()
            work(here, {"processes": True} | ({} if jobs is None else {"jobs": jobs}))
            row(f"{name}, this machine" + (f", --jobs {jobs}" if jobs else ""), *since(before))
        there.mkdir()
        before = used()
        seconds = on_cluster(work, model, there, workers)
        cpu, wall = since(before)
        row(f"{name}, Dask, {workers} workers", cpu, seconds)
        row("  with starting and ending them", cpu, wall)
        if contents(here) != contents(there):
            sys.exit("the outputs differ")


def on_cluster(work: Callable[[Path, Where], None], model: Path, folder: Path, workers: int) -> float:
    """Does some work on a cluster of its own; returns how long that took without starting it."""
    from distributed import LocalCluster

    import phiconv

    sizes = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with LocalCluster(**sizes) as cluster:
        start = time.perf_counter()
        with phiconv.machines(cluster.scheduler_address, model, folder / "x") as found:
            work(folder, {"executor": found.executor, "jobs": found.jobs})
        return time.perf_counter() - start


def contents(folder: Path) -> dict[str, bytes]:
    """All files in it, by their paths."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def used() -> tuple[float, float]:
    """CPU seconds of this process and of those that have ended, and the time."""
    total = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    return total, time.perf_counter()


def since(before: tuple[float, float]) -> tuple[float, float]:
    after = used()
    return after[0] - before[0], after[1] - before[1]


def row(label: str, cpu: float, wall: float) -> None:
    print(f"{label:44}{cpu:8.1f}{wall:8.1f}", flush=True)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # where gguf.py is another
    main()
