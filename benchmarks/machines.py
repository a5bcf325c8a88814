"""What a Dask cluster adds to a conversion: the same one on this machine, and on workers of it.

    python benchmarks/machines.py MODEL [--quant Q4_K_M] [--workers 3]

All workers are processes of this machine, so nothing is faster here: what is measured is the overhead. CPU
seconds are those of all processes, the scheduler included. The outputs are compared byte by byte.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import resource
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    from distributed import LocalCluster

    import phiconv

    model = options.model.resolve()
    rows = []
    with tempfile.TemporaryDirectory(prefix="phiconv-bench-") as name:
        here, there = (Path(name) / f"{place}.gguf" for place in ("here", "there"))
        for jobs in (1, os.cpu_count() or 1):
            before = used()
            phiconv.convert(model, here, quant=options.quant, jobs=jobs, processes=True, force=True)
            rows.append((f"this machine, --jobs {jobs}", *since(before)))
        before = used()
        with LocalCluster(
            n_workers=options.workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster:
            start = time.perf_counter()
            with phiconv.machines(cluster.scheduler_address, model, there) as workers:
                where = {"executor": workers.executor, "jobs": workers.jobs}
                phiconv.convert(model, there, quant=options.quant, **where)
            work = time.perf_counter() - start
        cpu, wall = since(before)
        rows.append((f"Dask, {options.workers} workers", cpu, work))
        rows.append(("  with starting and ending them", cpu, wall))
        if not filecmp.cmp(here, there, shallow=False):
            sys.exit("the outputs differ")
    print(f"{model.name} to {options.quant}: the same bytes")
    print(f"{'':36}{'CPU s':>8}{'wall s':>8}")
    for label, cpu, wall in rows:
        print(f"{label:36}{cpu:8.1f}{wall:8.1f}")


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


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # where gguf.py is another
    main()
