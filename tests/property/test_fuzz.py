"""The script that fuzzes every reader by itself: a few executions of each, and what it calls a finding."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

import fuzz
from fuzz_readers import READERS
from fuzz_seeds import one
from phiconv.errors import MalformedFileError

EXECUTIONS = 120


@pytest.mark.parametrize("name", READERS)
def test_a_reader(name, tmp_path):
    log = tmp_path / "log.json"
    for executions in (EXECUTIONS // 2, EXECUTIONS):  # the second time it goes on
        fuzz.rounds(log, [name], executions, 600)
    state = json.loads(log.read_text())[name]
    assert (state["executions"], state["findings"]) == (EXECUTIONS, [])
    assert state["read"] < EXECUTIONS or name == "model card"


def spin(_):
    while True:
        time.process_time()


def leave(path):
    (path.parent / "left").write_text("")


def several_lines(_):
    error = MalformedFileError("x")
    error.__class__ = type("Lines", (MalformedFileError,), {"__str__": lambda _: "a\nb"})
    raise error


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda _: {}["x"], "KeyError"),
        (lambda _: np.float32(1) / np.float32(0), "RuntimeWarning"),
        (lambda _: np.zeros(1 << 30), "MemoryError"),
        (several_lines, "several lines"),
        (leave, "a file was left"),
        (spin, "Hang"),
    ],
    ids=["error", "warning", "memory", "lines", "file", "time"],
)
def test_findings(monkeypatch, tmp_path, read, found):
    calls = []

    def seeds(root):
        # The first call is the one that shows that the seed is good.
        return [one(root, "x", b"abc", lambda path: read(path) if calls else calls.append(path))]

    monkeypatch.setitem(READERS, "x", seeds)
    monkeypatch.setattr(fuzz, "SECONDS", 0.02)
    fuzzer = fuzz.Fuzzer("x", tmp_path)
    state = {"executions": 0, "read": 0, "seconds": 0.0, "findings": []}
    fuzz.fuzz(fuzzer, state, 1, time.monotonic() + 60)
    assert found in state["findings"][0][1]
    assert state["read"] == 0
