"""Terminals and pipes, by the real command: a closed or full one ends nothing, and no name drives one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import phiconv
from paths import FIXTURES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell and terminals as on Unix")

MODEL = FIXTURES / "tiny-phi3"
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def shell(folder, line, **variables):
    """Runs a line of the shell, in which ``phiconv`` is the command; returns code, stdout and stderr."""
    line = f'phiconv() {{ "{sys.executable}" -m phiconv "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "MODEL": str(MODEL), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


# ---------------------------------------------------------------------------------- streams that take nothing


@pytest.mark.parametrize(
    "streams",
    [
        "2>&-",
        "<&- >&- 2>&-",
        pytest.param("2>/dev/full", marks=FULL),
        "2> >(true)",
        "--json | true; exit ${PIPESTATUS[0]}",
        "2>&1 --json | head -1; exit ${PIPESTATUS[0]}",
    ],
)
def test_a_stream_that_takes_nothing_ends_no_conversion(tmp_path, streams):
    variables = {"PYTHONUNBUFFERED": "1"} if "full" in streams else {}
    code, _, stderr = shell(tmp_path, f'phiconv "$MODEL" o.gguf --q8 --no-receipt {streams}', **variables)
    assert code == 0
    assert "report" not in stderr
    assert "Traceback" not in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["o.gguf"]
    assert phiconv.open_model(tmp_path / "o.gguf").architecture == "phi3"


@FULL
@pytest.mark.parametrize("command", ['"$MODEL" o.gguf --q8 --no-receipt --json', "--help"])
def test_results_that_are_lost_are_no_success(tmp_path, command):
    code, _, stderr = shell(tmp_path, f"phiconv {command} >/dev/full")
    assert code == 1
    assert stderr.endswith(
        "phiconv: standard output: all is done, but for telling it: No space left on device; "
        "write it elsewhere\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["o.gguf"] * ("o.gguf" in command)
    assert shell(tmp_path, "phiconv --help >/dev/full 2>/dev/full") == (1, "", "")


def test_whoever_has_read_enough_is_no_error(tmp_path):
    code, _, stderr = shell(tmp_path, 'phiconv inspect "$MODEL" | true; exit ${PIPESTATUS[0]}')
    assert (code, stderr) == (0, "")


def test_an_error_is_told_by_the_code_alone_where_nobody_listens(tmp_path):
    assert shell(tmp_path, "phiconv nowhere o.gguf 2>&-") == (1, "", "")


def test_messages_do_not_get_into_a_file_of_the_output(tmp_path):
    """A file that is opened gets the lowest free number, which must not be that of a stream."""
    shell(tmp_path, 'phiconv "$MODEL" o.gguf --q8')
    script = (
        "import os\nfrom phiconv.conversion import pipeline\nreal = pipeline._check_unchanged\n"
        "def noisy(package):\n    os.write(2, b'NOISE')\n    os.write(1, b'NOISE')\n    real(package)\n"
        "pipeline._check_unchanged = noisy\nfrom phiconv.cli import main\nmain()\n"
    )
    (tmp_path / "noisy.py").write_text(script)
    line = f'"{sys.executable}" noisy.py "$MODEL" p.gguf --q8 --jobs 1 <&- >&- 2>&-'
    assert shell(tmp_path, line)[0] == 0
    assert (tmp_path / "p.gguf").read_bytes() == (tmp_path / "o.gguf").read_bytes()


def test_a_slow_reader_of_a_non_blocking_pipe_gets_all(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "phiconv", "plan", str(MODEL), "o.gguf", "--json"]
    with subprocess.Popen(command, stdout=writing, cwd=tmp_path) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            text = pipe.read()
    assert process.returncode == 0
    assert len(text) > 5000
    assert json.loads(text)["recipe"] == "BF16"


# ------------------------------------------------------------------------------------------------------ names

NAMES = (
    "[link=https://a.example]b[/link]",
    "[/x]",
    "[bold red]",
    "a\x1b[2Jb\nc",
    "\x9b2J\u202egnp\u2028",
    "]8;;x\x07\r\x00",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A file whose tensors have such names, in a folder with one."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("x") / "a\x1b[2J[link=b]\n"
    folder.mkdir()
    weights = np.arange(128, dtype=np.float32).reshape(4, 32)
    save_file(dict.fromkeys(NAMES, weights), folder / "[x].safetensors")
    save_file({"[/x]": np.full((4, 32), np.nan, np.float32)}, folder / "nan.safetensors")
    return folder


def on_terminal(arguments, folder):
    """What a command writes on a terminal, and its exit code."""
    import pty

    answer, terminal = pty.openpty()
    command = [sys.executable, "-m", "phiconv", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, env=environment
    ) as process:
        os.close(terminal)
        parts = []
        while True:
            try:
                parts.append(os.read(answer, 1 << 16))
            except OSError:  # it has ended
                break
            if not parts[-1]:
                break
    os.close(answer)
    return process.returncode, b"".join(parts).decode()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("[x].safetensors", "o.gguf", "--plain", "--f32", "--force"), 0),
        (("inspect", "[x].safetensors"), 0),
        (("compare", "[x].safetensors", "[x].safetensors"), 0),
        (("nan.safetensors", "o.gguf", "--plain", "--force"), 1),
        (("[/x]\x1b[2J", "o.gguf"), 1),
        (("[x].safetensors", "o.gguf", "--jobs", "\x1b[2J"), 2),
    ],
)
def test_names_are_text_on_a_terminal(hostile, command, code):
    where = [hostile / word if word.endswith((".gguf", ".safetensors")) else word for word in command]
    done, shown = on_terminal(where, hostile.parent)
    assert done == code, shown
    assert "report" not in shown
    assert not {"\x9b", "\u202e", "\u2028", "\x07", "\x00"} & {*shown}
    assert "\x1b[2J" not in shown
    assert "\x1b]8;" not in shown  # a link
    assert r"\x1b[2J" in shown
    if command[0] == "inspect" and not code:
        assert all(name in shown for name in NAMES[:3])
