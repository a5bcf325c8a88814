"""One tile of weights, quantized by both programs."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.llama import libraries, open_ggml
from benchmarks.weights import TILE, tile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

Row = dict[str, Any]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The command ``kernels``."""
    folder = libraries()
    if isinstance(folder, str):
        return {"skipped": {"kernels": folder}}
    quantize = open_ggml(folder)
    rows = []
    for name in options.types or kernel_types():
        for weighted in (False, True) if options.importance else (False,):
            row = _kernel(name, options, quantize, weighted=weighted)
            rows += [row] if row else []
    before = os.getloadavg()
    threads = _threads(options, quantize)
    return {"source": options.source, "kernels": rows, "threads": threads, "load average": before}


def kernel_types() -> list[str]:
    """Every type of GGUF that phiconv quantizes to."""
    from phiconv.quantizers import QUANTIZERS
    from phiconv_formats.gguf.types import TYPE_OF_ENCODING

    return [encoding.name.upper() for encoding in QUANTIZERS if encoding in TYPE_OF_ENCODING]


def _pair(
    name: str, source: str, quantize: Callable[..., None], seed: int = 0, *, weighted: bool = False
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Both programs' way from one tile to the same bytes."""
    from phiconv.quantizers import QUANTIZERS, encode
    from phiconv_formats.gguf.packing import pack
    from phiconv_formats.gguf.types import TYPE_OF_ENCODING

    encoding = next(e for e in QUANTIZERS if e.name.upper() == name)
    kind, values = TYPE_OF_ENCODING[encoding], tile(source, seed)
    floats = values.astype(np.float32)
    weights = np.exp(np.random.default_rng(1).standard_normal(TILE[1])).astype(np.float32)
    importance = weights if weighted else None
    packed = np.empty(kind.nbytes(TILE), np.uint8)

    def theirs() -> np.ndarray:
        quantize(kind.id, floats, packed, importance)
        return packed

    return lambda: pack(encode(values, encoding, importance)), theirs


def _kernel(
    name: str, options: argparse.Namespace, quantize: Callable[..., None], *, weighted: bool
) -> Row | None:
    """One row of the table; none for a type that cannot do without importance weights."""
    from phiconv.quantizers import QUANTIZERS
    from phiconv.recipes.gguf import needs_importance

    encoding = next(e for e in QUANTIZERS if e.name.upper() == name)
    if not weighted and needs_importance(name, encoding, "blk.0.ffn_up.weight"):
        return None
    pair = _pair(name, options.source, quantize, weighted=weighted)
    equal = bool(np.array_equal(*(call() for call in pair)))  # and tables are made, caches warm
    best = _interleaved(pair, options.repeat, time.thread_time)
    ours, theirs = (seconds / (TILE[0] * TILE[1]) * 1e9 for seconds in best)
    return {
        "type": name,
        "importance": "yes" if weighted else "no",
        "phiconv ns": ours,
        "llama.cpp ns": theirs,
        "C/ours": theirs / ours,
        "bytes": "equal" if equal else "DIFFER",
    }


def _interleaved(
    calls: Sequence[Callable[[], object]], repeat: int, clock: Callable[[], float]
) -> list[float]:
    """The best time of each, in turns: whatever else the machine does meets all of them."""
    best = [float("inf")] * len(calls)
    for _ in range(repeat):
        for index, call in enumerate(calls):
            started = clock()
            call()
            best[index] = min(best[index], clock() - started)
    return best


def _threads(options: argparse.Namespace, quantize: Callable[..., None], tiles: int = 4) -> list[Row]:
    """Wall time of the same tiles in one thread and in two; for phiconv also in two processes."""
    from phiconv.conversion import processes

    programs = zip(*(_pair("Q4_K", options.source, quantize, seed) for seed in range(2)), strict=True)

    def work(call: Callable[[], object]) -> None:
        for _ in range(tiles):
            call()

    def at_once() -> None:
        list(workers.map(_work, [options.source] * 2, range(2), [tiles] * 2))

    def one_after_the_other() -> None:
        for seed in range(2):
            workers.submit(_work, options.source, seed, tiles).result()

    calls: list[Callable[[], object]] = []
    with ThreadPoolExecutor(2) as two, processes.pool(2) as workers:
        for pair in programs:
            calls.append(lambda pair=pair: [work(call) for call in pair])
            calls.append(lambda pair=pair: list(two.map(work, pair)))
        calls += [one_after_the_other, at_once]
        _interleaved(calls, 1, time.perf_counter)
        best = [1e3 * seconds for seconds in _interleaved(calls, options.repeat, time.perf_counter)]
    return [
        {"Q4_K": who, "one at a time ms": one, "two at once ms": both, "speed-up": one / both}
        for who, one, both in (
            ("phiconv, two threads", *best[:2]),
            ("phiconv, two processes", *best[4:]),
            ("llama.cpp, two threads", *best[2:4]),
        )
    ]


@cache
def _call(source: str, seed: int) -> Callable[[], object]:
    return _pair("Q4_K", source, lambda *_: None, seed)[0]


def _work(source: str, seed: int, tiles: int) -> None:
    """What a process does: phiconv's half of `_threads`."""
    for _ in range(tiles):
        _call(source, seed)()
