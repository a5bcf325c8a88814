"""Signals, by the real command: whatever asks for its end, it cleans up, and its exit code says what did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from paths import FIXTURES
from phiconv.conversion.interrupts import uninterrupted

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")

MODEL = FIXTURES / "tiny-phi3"

# Says so where it is in the middle of its work, and waits there.
WAITING = """
import sys, time
from phiconv.conversion import outputs, pipeline
real, count = pipeline.convert_span, [0]
def waiting(*arguments):
    count[0] += 1
    if count[0] == 10:
        print("half", flush=True)
        time.sleep(1)
    return real(*arguments)
pipeline.convert_span = waiting
"""

# Says so where it begins to clean up, and takes its time for that.
SLOW_TO_CLEAN = """
real_remove = outputs.PartialFile.remove
def slow_remove(partial):
    print("cleaning", flush=True)
    time.sleep(0.5)
    real_remove(partial)
outputs.PartialFile.remove = slow_remove
"""

# Says so before the second renaming, and waits there.
RENAMING = """
import os, sys, time
real, count = os.replace, [0]
def replace(*arguments):
    count[0] += 1
    if count[0] == 3:
        print("half", flush=True)
        time.sleep(0.5)
    return real(*arguments)
os.replace = replace
"""

MAIN = """
sys.argv[0] = "phiconv"
from phiconv.cli import main
main(sys.argv[1:])
"""


def started(script, *arguments, **options):
    command = [sys.executable, "-c", script + MAIN, *map(str, arguments), "--jobs", "1", "-q", "--no-receipt"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


@pytest.mark.parametrize(
    "name",
    ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGXCPU", "SIGUSR1", "SIGALRM", "SIGVTALRM", "SIGPROF"],
)
def test_a_signal_ends_a_command_in_order(tmp_path, name):
    number = getattr(signal, name)
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, and stays so")
    with started(WAITING, MODEL, tmp_path / "o.gguf", "--q8") as process:
        assert process.stdout.readline() == "half\n"
        assert len([*tmp_path.iterdir()]) == 1
        process.send_signal(number)
        said = process.communicate()[1]
    assert process.returncode == 128 + number
    by = "" if number == signal.SIGINT else f" by {name}"
    assert said == f"phiconv: interrupted{by}\n"
    assert [*tmp_path.iterdir()] == []


def test_a_second_signal_does_not_end_the_cleaning(tmp_path):
    with started(WAITING + SLOW_TO_CLEAN, MODEL, tmp_path / "m", "--to", "mlx", "--q8") as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "cleaning\n"
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            process.send_signal(number)
        process.communicate()
    assert process.returncode in {128 + n for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    assert [*tmp_path.iterdir()] == []


def test_a_signal_between_two_renamings_waits(tmp_path):
    """The output is the new one, and the exit code says that somebody wanted an end."""
    arguments = (MODEL, tmp_path / "x.xml", "--q8", "--force", "--no-receipt")
    assert (
        subprocess.run([sys.executable, "-m", "phiconv", *map(str, arguments)], check=False).returncode == 0
    )
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with started(RENAMING, FIXTURES / "tiny-phi4mini", *arguments[1:]) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in ("x.xml", "x.bin"))
    opened = [sys.executable, "-m", "phiconv", "inspect", str(tmp_path / "x.xml"), "--no-tensors"]
    assert subprocess.run(opened, check=False, capture_output=True).returncode == 0


def test_what_is_ignored_stays_ignored(tmp_path):
    """As by nohup(1): the terminal goes and the conversion stays."""
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with started(ignore + WAITING, MODEL, tmp_path / "o.gguf", "--q8") as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGHUP)
        assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["o.gguf"]


# --------------------------------------------------------------------------------------- interrupts that wait


INTERRUPTED_TWICE = """
import signal
from phiconv.conversion.interrupts import uninterrupted

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
try:
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        print("done")
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("interrupted")
"""


def test_interrupts_wait():
    """In a process of its own: libraries that the others load have handlers of their own."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_TWICE], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["done", "interrupted"]


def test_other_threads_have_no_interrupts():
    before, done = signal.getsignal(signal.SIGINT), []

    def work():
        with uninterrupted():
            done.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
