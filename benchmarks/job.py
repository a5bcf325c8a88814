"""A whole model, converted and quantized by both programs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.llama import libraries
from benchmarks.weights import write_model

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

Row = dict[str, Any]

_RELEASE = Path(__file__).resolve().parents[1] / "tests" / "helpers" / "llama_release.py"
_BLOCK = 1 << 20  # bytes compared at once
_SAMPLING = 0.02  # seconds


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took.

    Attributes:
        cpu: Seconds of all processors, user and system, of the process and those that it started.
        wall: Seconds.
        anonymous: Peak of the memory that is no file's, in MiB, as sampled; None where /proc is missing.
        resident: Peak of all memory, mapped files included, in MiB, as sampled; None likewise.
        faults: Minor page faults: how often memory had to be made.
    """

    cpu: float
    wall: float
    anonymous: float | None
    resident: float | None
    faults: int


def measure(command: Sequence[str | Path]) -> Cost:
    """Runs a command and measures it; ends the program if it fails."""
    peaks: dict[str, float] = {}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while True:
            pid, code, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            for key, size in _memory(process.pid).items():
                peaks[key] = max(peaks.get(key, 0), size)
            time.sleep(_SAMPLING)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(code)
        if process.returncode:
            errors.seek(0)
            text = errors.read().decode(errors="replace")
            sys.exit(f"{shlex.join(map(str, command))} failed with {process.returncode}:\n{text}")
    return Cost(
        usage.ru_utime + usage.ru_stime, wall, peaks.get("RssAnon"), peaks.get("VmRSS"), usage.ru_minflt
    )


def _memory(process: int) -> dict[str, float]:
    """Memory of a process and of those that it started, in MiB; nothing where /proc is missing."""
    sizes: dict[str, float] = {}
    try:
        status = Path(f"/proc/{process}/status").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # no /proc, or the process has ended
        return sizes
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key in {"RssAnon", "VmRSS"}:
            sizes[key] = int(value.split()[0]) / 1024
    for child in children:
        for key, size in _memory(int(child)).items():
            sizes[key] = sizes.get(key, 0) + size
    return sizes


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The command ``job``."""
    with tempfile.TemporaryDirectory(prefix="phiconv-bench-", dir=options.scratch) as name:
        scratch = Path(name)
        model = options.model or write_model(scratch / "model", options.layers)
        return _job(options, model.resolve(), scratch)


def _job(options: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    import phiconv

    recipe = phiconv.plan(model, scratch / "ours.gguf", quant=options.quant).recipe
    before, folder = os.getloadavg(), libraries()
    phi = [sys.executable, "-P", "-m", "phiconv", model]
    how = ["--quiet", "--force", "--jobs", str(options.jobs)]
    commands = {
        "phiconv, the BF16 file": [*phi, scratch / "bf16.gguf", "--bf16", *how],
        f"phiconv, to {recipe}": [*phi, scratch / "ours.gguf", "--quant", recipe, *how],
    }
    if options.peer_converter:
        words = shlex.split(options.peer_converter)
        paths = {"{model}": str(model), "{out}": str(scratch / "peer.gguf")}
        commands["peer's converter"] = [_filled(word, paths) for word in words]
    if isinstance(folder, Path):
        job = {"source": str(scratch / "bf16.gguf"), "target": str(scratch / "theirs.gguf")}
        (scratch / "job.json").write_text(json.dumps([{**job, "recipe": recipe, "jobs": options.jobs}]))
        (scratch / "nothing.json").write_text("[]")
        release = [sys.executable, _RELEASE, folder]
        commands["llama.cpp's libraries, to start"] = [*release, scratch / "nothing.json"]
        commands[f"llama.cpp, BF16 to {recipe}"] = [*release, scratch / "job.json"]
    costs = _measured(commands, options.repeat)
    result = {"recipe": recipe, "jobs": options.jobs, "load average": before}
    result |= {"steps": [{"step": n, **asdict(c)} for n, c in costs.items()]}
    result |= {"ratios": _ratios(costs, recipe), "outputs": _outputs(scratch)}
    return result | ({"skipped": {"llama.cpp's half": folder}} if isinstance(folder, str) else {})


def _filled(word: str, paths: dict[str, str]) -> str:
    for key, path in paths.items():
        word = word.replace(key, path)
    return word


def _measured(commands: dict[str, list[str | Path]], repeat: int) -> dict[str, Cost]:
    """All commands in turn, ``repeat`` times; of each the least time and the most memory."""
    rounds = [{name: measure(command) for name, command in commands.items()} for _ in range(repeat)]
    result = {}
    for name in commands:
        costs = [costs[name] for costs in rounds]
        anonymous = max((c.anonymous for c in costs if c.anonymous is not None), default=None)
        resident = max((c.resident for c in costs if c.resident is not None), default=None)
        result[name] = Cost(
            min(c.cpu for c in costs),
            min(c.wall for c in costs),
            anonymous,
            resident,
            min(c.faults for c in costs),
        )
    return result


def _ratios(costs: dict[str, Cost], recipe: str) -> list[Row]:
    """Times of the other route as multiples of phiconv's; llama-quantize itself starts in no time."""
    ours, theirs = costs[f"phiconv, to {recipe}"], costs.get(f"llama.cpp, BF16 to {recipe}")
    if theirs is None:
        return []
    start, first = costs["llama.cpp's libraries, to start"], costs.get("peer's converter")
    cpu, wall = theirs.cpu - start.cpu, theirs.wall - start.wall
    routes = {"llama.cpp's second half alone": (cpu, wall)}
    if first is not None:
        routes["peer's converter and llama.cpp"] = (cpu + first.cpu, wall + first.wall)
    return [
        {"as multiples of phiconv's whole job": name, "CPU": c / ours.cpu, "wall time": w / ours.wall}
        for name, (c, w) in routes.items()
    ]


def _outputs(scratch: Path) -> list[Row]:
    """Which files are the same."""
    pairs = {"phiconv and llama.cpp": ("ours", "theirs"), "BF16 of phiconv and the peer": ("bf16", "peer")}
    rows = []
    for name, files in pairs.items():
        first, second = (scratch / f"{file}.gguf" for file in files)
        if first.exists() and second.exists():
            rows.append({"outputs": name, "bytes": first.stat().st_size, "": _compare(first, second)})
    return rows


def _compare(first: Path, second: Path) -> str:
    sizes = [path.stat().st_size for path in (first, second)]
    if sizes[0] != sizes[1]:
        return f"DIFFER: {sizes[1] - sizes[0]:+} bytes"
    different = 0
    with first.open("rb") as a, second.open("rb") as b:
        while (x := a.read(_BLOCK)) and (y := b.read(_BLOCK)):
            if x != y:
                different += int(np.count_nonzero(np.frombuffer(x, np.uint8) != np.frombuffer(y, np.uint8)))
    return f"DIFFER: {different} bytes" if different else "equal, byte for byte"
