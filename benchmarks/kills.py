"""What a kill leaves: the older output, the new one, or what phiconv recognises and finishes.

    python benchmarks/kills.py [--kills N] [--targets NAME,...] [--seed N] [--json]

Each target gets a model's output replaced by another model's, with --force, and the run is killed (SIGKILL):
once before every call that gives a file a name or takes one away, and N times at random moments. Then the
folder is looked at. Its files are those of the older output or those of the new one, byte for byte; or else
phiconv refuses them as a source, and the same command once more makes the new output of them. It prints how
often it was which, and ends with 1 if it ever was something else.

Needs a system with fork(); the command starts in a copy of this process, which has imported all it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_HERE = Path(__file__).resolve().parent
_FIXTURES = _HERE.parent / "fixtures"
OLD, NEW = _FIXTURES / "tiny-phi3", _FIXTURES / "tiny-phi4mini"

TARGETS: dict[str, tuple[str, list[str]]] = {
    "gguf": ("x.gguf", ["--q8"]),
    "gguf parts": ("x.gguf", ["--q8", "--split-max-size", "3M"]),
    "safetensors": ("", ["--to", "safetensors", "--split-max-size", "3M"]),
    "mlx": ("", ["--to", "mlx", "--q8", "--split-max-size", "3M"]),
    "onnx": ("", ["--to", "onnx", "--q4"]),
    "onnx file": ("x.onnx", ["--q4"]),
    "transformers.js": ("", ["--to", "onnx", "--q4", "--layout", "transformers.js"]),
    "openvino": ("", ["--to", "openvino", "--q8"]),
    "openvino file": ("x.xml", ["--q8"]),
    "litert": ("x.litertlm", ["--q8"]),
    "compressed-tensors": ("", ["--to", "compressed-tensors", "--q8"]),
    "gptq": ("", ["--to", "gptq", "--q8"]),
    "awq": ("", ["--to", "awq", "--q4"]),
    "calibrate": ("c", ["--context", "16", "--calibration-tokens", "64"]),
}
"""What a destination is called in its folder ("" for the folder as a whole), and the options.

"calibrate" is the command of this name, whose output is a calibration folder; the others convert.
"""

_CALLS = ("replace", "link", "rename", "unlink", "rmdir")
_OUTCOMES = ("older", "new", "recognised", "else")


def arguments(source: Path, folder: Path, target: str) -> list[str]:
    """The command line of a target."""
    name, options = TARGETS[target]
    if target == "calibrate":
        return ["calibrate", str(source), "-o", str(folder / name), *options]
    return [str(source), str(folder / name), *options, "--jobs", "2"]


def convert(source: Path, folder: Path, target: str, before: Callable[[], None] = lambda: None) -> int:
    """Starts the command; returns its process."""
    process = os.fork()
    if process:
        return process
    try:
        from phiconv.cli import main

        before()
        main([*arguments(source, folder, target), "--force", "--quiet"])
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    finally:
        os._exit(1)


def converted(source: Path, folder: Path, target: str) -> float:
    """Converts to the end; returns how many seconds it took."""
    start = time.monotonic()
    status = os.waitpid(convert(source, folder, target), 0)[1]
    if status:
        raise SystemExit(f"{target}: the conversion of {source} failed")
    return time.monotonic() - start


def kill_at(number: int) -> None:
    """Ends this process before it gives files names, or takes them away, for so many times."""
    calls = [0]

    def watched(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls[0] += 1
            return real(*arguments, **options)

        return call

    for name in _CALLS:
        setattr(os, name, watched(getattr(os, name)))


def is_that(there: dict[str, str], output: dict[str, str]) -> bool:
    """Whether it is an output; its receipt may be missing, which goes first and comes last."""
    missing = output.keys() - there.keys()
    return there.items() <= output.items() and all(name.endswith("receipt.json") for name in missing)


def content(folder: Path) -> dict[str, str]:
    """What is in a folder, but for temporary files: names, and sums of what they hold."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and ".partial" not in str(p))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


class Drill:
    """One target, with its two outputs.

    Attributes:
        seconds: How long a run takes.
    """

    def __init__(self, target: str, work: Path) -> None:
        self._target, self._folder = target, work / "m"
        self._before, self._after = work / "before", work / "after"
        for folder in (self._before, self._after):
            folder.mkdir()
        converted(OLD, self._before, target)
        # What a destination was before decides what else is in its folder.
        shutil.copytree(self._before, self._after, dirs_exist_ok=True)
        self.seconds = converted(NEW, self._after, target)
        self._old, self._new = content(self._before), content(self._after)

    def kill(self, before: Callable[[], None], seconds: float | None = None) -> str | None:
        """Runs the command until it is killed; returns what is there then, None if it came to its end."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._before, self._folder, copy_function=os.link)
        process = convert(NEW, self._folder, self._target, before)
        if seconds is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        return self._state() if os.WIFSIGNALED(status) else None

    def _state(self) -> str:
        there = content(self._folder)
        state = "older" if is_that(there, self._old) else "new" if is_that(there, self._new) else ""
        if all(map(self._opens, self._mains(there))):
            return state or "else"
        if state:
            return "else"
        converted(NEW, self._folder, self._target)
        whole = content(self._folder) == self._new and not [*self._folder.rglob("*.partial")]
        return "recognised" if whole else "else"

    def _mains(self, there: dict[str, str]) -> list[Path]:
        """What somebody would open."""
        name = TARGETS[self._target][0]
        parts = [p for p in there if p.startswith(f"{Path(name).stem}-00001-of-")] if name else []
        return [self._folder / main for main in (parts or [name])]

    def _opens(self, path: Path) -> bool:
        import phiconv
        from phiconv_formats.calibration.reader import open_calibration

        if self._target == "calibrate":
            # A folder is replaced by two renamings; between them there is none of its name.
            return path.exists() and bool(open_calibration(path).manifest.inputs)
        try:
            return bool(phiconv.open_model(path).stored)
        except phiconv.errors.MalformedFileError as error:
            if "ended while it wrote this" in str(error):
                return False
            raise


def drilled(target: str, kills: int, chance: random.Random) -> dict[str, Any]:
    """All kills of one target, counted."""
    counts = dict.fromkeys(_OUTCOMES, 0)
    with tempfile.TemporaryDirectory() as work:
        drill = Drill(target, Path(work))
        calls = 0
        while (state := drill.kill(lambda: kill_at(calls))) is not None:  # noqa: B023 - called at once
            counts[state] += 1
            calls += 1
        done = 0
        while done < kills:
            state = drill.kill(lambda: None, chance.uniform(0, drill.seconds))
            if state is not None:
                counts[state] += 1
                done += 1
    return {"target": target, "at names": calls, "at random": done, **counts}


def main() -> None:
    """Prints a row for each target."""
    # A script beside this one is called gguf, too.
    sys.path[:] = [str(_HERE.parent), *(path for path in sys.path if Path(path).resolve() != _HERE)]
    from benchmarks.printing import show

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300, help="at random moments, for each target")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="for programs")
    wanted = parser.parse_args()
    import phiconv.api  # before there are copies of this process
    import phiconv.conversion.pipeline
    import phiconv.forward.interpreter
    import phiconv.quality.folder  # noqa: F401

    chance = random.Random(wanted.seed)  # noqa: S311 - moments, no secrets
    rows = []
    for target in wanted.targets.split(","):
        rows.append(drilled(target, wanted.kills, chance))
        print(rows[-1], file=sys.stderr)
    show({"kills": rows}, as_json=wanted.json)
    sys.exit(any(row["else"] for row in rows))


if __name__ == "__main__":
    main()
