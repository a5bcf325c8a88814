"""The command that runs an output, as a conversion says it at its end."""

from __future__ import annotations

import json
import os
import shlex

import pytest
from click.testing import CliRunner

import phiconv
from paths import FIXTURES
from phiconv.cli import main
from phiconv.guide.devices import find_device
from phiconv.guide.running import run_command
from phiconv.runtimes import quoted

TINY = FIXTURES / "tiny-phi4mini"


def planned(tmp_path, name, device=None, **options):
    made = phiconv.plan(TINY, tmp_path / name, **options)
    return run_command(made, None if device is None else find_device(device))


@pytest.mark.parametrize(
    ("name", "options", "begins"),
    [
        ("a b.gguf", {}, "llama-cli -m {}"),
        ("a.gguf", {"device": "lmstudio"}, "lms import {}"),
        ("a b.gguf", {"device": "ollama"}, "echo FROM {} > Modelfile && ollama create a-b && ollama run a-b"),
        ("a.litertlm", {}, "litert-lm run {}"),
        ("it's", {"to": "mlx", "quant": "q4"}, "mlx_lm.chat --model {}"),
        ("a b", {"to": "onnx", "quant": "q4"}, "python model-chat.py -m {} -e follow_config"),
        ("a", {"to": "compressed-tensors", "quant": "w8a16"}, "vllm serve {}"),
        ("a", {"to": "gptq", "quant": "q8"}, "vllm serve {}"),
    ],
)
def test_a_command_has_the_path_as_one_word(tmp_path, name, options, begins):
    assert planned(tmp_path, name, **options) == begins.format(quoted(str(tmp_path / name)))


@pytest.mark.skipif(os.name == "nt", reason="quoted for another shell there")
def test_commands_of_programs_get_the_path_as_an_argument(tmp_path):
    js = phiconv.Choices(layout="transformers.js")
    said = planned(tmp_path, "a b", to="onnx", quant="q4", choices=js)
    assert shlex.split(said)[:2] == ["node", "-e"]
    assert shlex.split(said)[3:] == [str(tmp_path / "a b")]
    said = planned(tmp_path, "a b", "intel-npu", to="openvino", quant="int4-sym")
    program, option, code, path = shlex.split(said)
    assert (program, option, path) == ("python", "-c", str(tmp_path / "a b"))
    compile(code, "command", "exec")
    assert "LLMPipeline(sys.argv[1], 'NPU')" in code


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tflite", {}),
        ("a", {"to": "safetensors"}),
        ("a.xml", {"to": "openvino", "quant": "q8"}),
        ("a.gguf", {"device": "ollama", "split_max_size": 2_000_000}),
        ("a\nb.gguf", {}),
    ],
)
def test_nothing_is_said_where_nothing_runs_it(tmp_path, name, options):
    assert planned(tmp_path, name, **options) is None


def test_plain_tensors_run_nowhere(tmp_path):
    made = phiconv.plan(
        TINY / "model.safetensors", tmp_path / "a.gguf", config=None, choices=phiconv.Choices(plain=True)
    )
    assert run_command(made) is None


def test_a_conversion_ends_with_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(main, [str(TINY), "a b.gguf", "--for", "ollama", "--quant", "q8"])
    assert told.exit_code == 0, told.stderr
    path = shlex.quote("./a b.gguf") if os.name != "nt" else '"./a b.gguf"'
    line = f"echo FROM {path} > Modelfile && ollama create a-b && ollama run a-b"
    assert told.stderr.splitlines()[-1].strip() == line
    told = CliRunner().invoke(main, [str(TINY), "b.gguf", "--quant", "q8", "--json"])
    assert json.loads(told.stdout)["run"] == "llama-cli -m ./b.gguf"
