"""The commands that help to decide, and ``--for``."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from paths import FIXTURES, ROOT
from phiconv.cli import main
from phiconv.guide.devices import DEVICES, find_device
from phiconv.runtimes import RUNTIMES, USUAL
from phiconv_formats import FORMATS

TINY = str(FIXTURES / "tiny-phi4mini")


def run(*arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.mark.parametrize("options", [(), ("--memory", "9.5M"), ("--for", "iphone"), ("--memory", "1k")])
def test_a_choice_fits_the_screen_but_for_commands(options):
    lines = run("choose", TINY, *options).stdout.splitlines()
    assert len(lines) <= 40
    commands = ("phiconv ", "python ", "litert-lm ")
    assert [line for line in lines if len(line) > 80 and not line.startswith(commands)] == []


def test_a_choice_for_programs():
    found = json.loads(run("choose", TINY, "--json", "--memory", "1G").stdout)
    assert found["weights_there"]
    assert {row["runtime"] for row in found["rows"]} == {runtime.name for runtime in USUAL}
    assert sum(row["recommended"] for row in found["rows"]) == len(USUAL)


def test_devices_are_listed_with_their_sources():
    found = json.loads(run("choose", "--for", "list", "--json").stdout)
    assert [one["name"] for one in found] == [*DEVICES]
    assert all(one["source"].startswith("https://") for one in found)
    lines = run("choose", "--for", "list").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.split()[:1] == [name] for line in lines) for name in DEVICES)


def test_devices_are_documented_with_their_sources():
    rows = (ROOT / "docs/choose.md").read_text(encoding="utf-8").splitlines()
    for device in DEVICES.values():
        (row,) = (row for row in rows if row.startswith(f"| `{device.name}` |"))
        assert f"`{device.recipes[0]}`" in row
        assert f"({device.source})" in row
        assert all(f"--{name} {value}" in row for name, value in device.options.items())
        assert row.count("`") % 2 == 0


def test_every_runtime_names_its_format_and_command():
    for runtime in RUNTIMES.values():
        assert FORMATS[runtime.format].writer is not None
        assert "some/path" in runtime.command("some/path", "name")
        assert not re.search(r"\{\w+\}", runtime.command("x"))
        assert runtime.source.startswith("https://")


DIFFERENT = {(d.format, d.recipes[0], *d.options.values()): name for name, d in DEVICES.items()}


@pytest.mark.parametrize("name", DIFFERENT.values())
def test_every_kind_of_device_can_be_planned_for(tmp_path, name):
    found = json.loads(run("plan", TINY, str(tmp_path / "out"), "--for", name, "--json").stdout)
    assert (found["target"], found["recipe"]) == (DEVICES[name].format, DEVICES[name].recipes[0])


def test_what_the_user_says_counts(tmp_path):
    out = str(tmp_path / "out")
    found = json.loads(run("plan", TINY, out, "--for", "Mac", "--q6", "--json").stdout)
    assert (found["target"], found["recipe"]) == ("mlx", "6bit")
    assert json.loads(
        run("plan", TINY, f"{out}.gguf", "--for", "ollama", "--to", "llama.cpp", "--json").stdout
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("plan M x.gguf --for mac", "--for mac writes mlx, and this name says gguf"),
        ("plan M x --for mac --to gguf", "--for mac needs --to mlx, and --to says gguf"),
        ("plan M x --for browser --target cpu", "--for browser needs --target webgpu, and --target says cpu"),
        ("plan M x --for brwser", "--for brwser: unknown device; did you mean browser?"),
        ("choose", "MODEL is missing; write phiconv choose MODEL"),
        ("explain imatirx", "nothing is called 'imatirx' here; did you mean imatrix?"),
        ("plan M x --to onnx --q6", "onnx has no quantization 'q6'; the nearest is --q8, which is int8"),
        ("plan M x --to awq --q2", "awq has no quantization 'q2'; the nearest is --q4, which is 4bit"),
    ],
)
def test_contradictions_and_slips_are_one_line(tmp_path, monkeypatch, line, says):
    monkeypatch.chdir(tmp_path)
    result = run(*(TINY if word == "M" else word for word in line.split()))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


def test_aliases_name_one_device_each():
    aliases = [alias for device in DEVICES.values() for alias in device.aliases]
    assert len({*aliases, *DEVICES}) == len(aliases) + len(DEVICES)
    assert find_device("Apple_Silicon").name == "mac"


def test_an_explanation_fits_the_screen():
    lines = run("explain", "group", "size").stdout.splitlines()
    assert lines[0] == "group size (word)"
    assert max(map(len, lines)) <= 80
    assert json.loads(run("explain", "q4_k_m", "--json").stdout)[0]["name"] == "Q4_K_M"
