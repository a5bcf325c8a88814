"""Work in processes: the bytes of threads for every target, and nothing that is left behind at any end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import phiconv
from paths import FIXTURES
from phiconv.conversion import pipeline, processes

FIXTURE = FIXTURES / "tiny-phi3"

QUANTS = {"gguf": "Q4_K_M", "mlx": "4bit", "onnx": "int4", "openvino": "int4", "safetensors": "f16"}


def contents(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file.read_bytes() for file in files if file.is_file()]


@pytest.fixture(scope="module")
def pool():
    with processes.pool(2) as pool:
        yield pool


@pytest.mark.parametrize("target", QUANTS)
def test_same_bytes_for_every_target(target, pool, tmp_path):
    """What each writer hands over can be sent to another process."""
    made = []
    for name, executor in (("threads", None), ("processes", pool)):
        destination = tmp_path / (f"{name}.gguf" if target == "gguf" else name)
        phiconv.convert(FIXTURE, destination, to=target, quant=QUANTS[target], executor=executor)
        made.append(contents(destination))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("quant", "jobs", "enough", "expected"),
    [("q4", 3, True, [3]), ("q4", 3, False, []), ("q4", 1, True, []), ("q8", 3, True, [])],
)
def test_processes_are_for_searches(quant, jobs, enough, expected, monkeypatch, tmp_path):
    asked = []

    def pool(jobs):
        asked.append(jobs)
        return ThreadPoolExecutor(jobs)

    monkeypatch.setattr(processes, "pool", pool)
    # With compiled searches threads do.
    monkeypatch.setattr("phiconv.quantizers.compiled.expect", lambda _: False)
    if enough:
        monkeypatch.setattr(pipeline, "_WORTH_PROCESSES", 1)
    phiconv.convert(FIXTURE, tmp_path / "o.gguf", quant=quant, jobs=jobs, processes=True)
    assert asked == expected


# Each task of a worker takes a while, and there are many.
SLOW_CONVERSION = """
import signal, sys, time
from phiconv.conversion import pipeline, rows
convert = pipeline.convert_span

def slow(*arguments):
    done = convert(*arguments)
    time.sleep(0.03)  # with the output open: by this the test tells a worker
    return done

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    pipeline.convert_span, pipeline._WORTH_PROCESSES, rows.SPAN = slow, 1, 1 << 14
    from phiconv.cli import main
    main([*sys.argv[1:], "--q4", "--quiet", "--jobs", "2"], prog_name="phiconv")
"""


def children(process):
    return {int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()}


def workers(process):
    """The processes that work for one: those of its children that have opened its output."""

    def is_worker(pid):
        try:
            return any(".partial" in str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:  # it, or the file, is not there any more
            return False

    return {pid for pid in children(process) if is_worker(pid)}


def wait_for(condition):
    for _ in range(1200):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in a minute")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", None])
def test_no_end_leaves_a_process_behind(name, tmp_path):
    """A signal for the program, for all its processes (SIGHUP), or (None) for a worker alone."""
    number = getattr(signal, name) if name else None
    if name and name != "SIGKILL" and signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, and stays so")
    script, folder = tmp_path / "slow.py", tmp_path / "out"
    script.write_text(SLOW_CONVERSION)
    folder.mkdir()
    command = [sys.executable, script, FIXTURE, folder / "o.gguf"]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        working: set[int] = set()  # both: one that is ended while it starts says so
        wait_for(lambda: working.update(workers(process.pid)) or len(working) == 2)
        started = children(process.pid)
        if number is None:
            os.kill(min(working), signal.SIGKILL)
        elif name == "SIGHUP":
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
    assert not (folder / "o.gguf").exists()
    if name == "SIGKILL":
        return
    assert list(folder.iterdir()) == []
    if number is None:
        assert process.returncode == 1
        assert "a worker process was ended" in errors
        assert "--jobs 1" in errors
    else:
        by = "" if name == "SIGINT" else f" by {name}"
        assert (process.returncode, errors) == (128 + number, f"phiconv: interrupted{by}\n")
