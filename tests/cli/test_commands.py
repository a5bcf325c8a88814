"""The command line as a person meets it: exit codes, one line per error, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import phiconv
from paths import FIXTURES
from phiconv.cli import main

FIXTURE = FIXTURES / "tiny-phi3"
PHI4MINI = FIXTURE.parent / "tiny-phi4mini"


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs a command in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def fails(cli, tmp_path):
    """Runs a command that must fail with one line and leave the folder as it was."""

    def run(*arguments, code=1, says):
        before = sorted(tmp_path.rglob("*"))
        exit_code, stdout, stderr = cli(*arguments)
        assert exit_code == code, stderr
        assert stdout == ""
        assert says in stderr
        lines = stderr.strip().splitlines()
        assert len(lines) == 1, stderr
        assert "Traceback" not in stderr
        assert sorted(tmp_path.rglob("*")) == before
        return stderr

    return run


@pytest.fixture
def copy(tmp_path):
    """A copy of the trained fixture that a test may damage; the weights are only linked."""

    def make(name="model"):
        folder = tmp_path / name
        folder.mkdir()
        for file in FIXTURE.iterdir():
            if file.suffix in {".json", ".model"}:
                shutil.copy(file, folder)
        os.link(FIXTURE / "model.safetensors", folder / "model.safetensors")
        return folder

    return make


def test_readme_command(cli):
    assert cli(FIXTURE / "model.safetensors", "out.gguf", "--q4")[0] == 0
    assert phiconv.open_model("out.gguf").stored["blk.0.ffn_up.weight"].encoding.name == "q4_k"


def test_module(tmp_path):
    command = [sys.executable, "-m", "phiconv", str(FIXTURE), "o.gguf", "--q8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.startswith("o.gguf: Q8_0, 6.2 MB")


def test_version(cli):
    assert cli("--version")[1] == f"phiconv, version {phiconv.__version__}\n"


@pytest.mark.parametrize(
    "argument", ["--help", "convert --help", "plan --help", "inspect --help", "formats --help"]
)
def test_help(cli, argument):
    code, stdout, _ = cli(*argument.split())
    assert code == 0
    assert "Usage:" in stdout


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        ((), "BF16"),
        (("--q4",), "Q4_K_M"),
        (("--quant", "q4_k"), "Q4_K_M"),
        (("--quant", "Q4_0"), "Q4_0"),
        (("--q8",), "Q8_0"),
        (("--f16",), "F16"),
        (("--f32",), "F32"),
        (("--bf16",), "BF16"),
        (("--quant", "q5_1"), "Q5_1"),
        (("--quant", "Q4-1", "--pure"), "Q4_1"),
        (("--quant", "q8"), "Q8_0"),
    ],
)
def test_recipes(cli, options, recipe):
    code, stdout, stderr = cli(FIXTURE, "o.gguf", *options, "--json")
    assert code == 0, stderr
    result = json.loads(stdout)
    assert result["recipe"] == recipe
    assert result["bytes"] == Path("o.gguf").stat().st_size


def test_quiet(cli):
    assert cli(FIXTURE, "o.gguf", "--quiet") == (0, "", "")


def test_plan_is_exact_and_reads_no_weight(cli, tmp_path, copy):
    folder = copy()
    data = (FIXTURE / "model.safetensors").read_bytes()
    head = 8 + struct.unpack("<Q", data[:8])[0]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(data[:head] + b"\xff" * (len(data) - head))  # all NaN
    code, stdout, _ = cli("plan", folder, "o.gguf", "--q8", "--json")
    planned = json.loads(stdout)
    assert code == 0
    assert not Path("o.gguf").exists()
    assert cli(FIXTURE, "o.gguf", "--q8")[0] == 0
    assert planned["bytes"] == Path("o.gguf").stat().st_size
    assert "Q8_0" in cli("plan", FIXTURE, "p.gguf", "--q8")[1]


def test_inspect_folder(cli):
    code, stdout, _ = cli("inspect", FIXTURE)
    assert code == 0
    for words in (
        "phi3",
        "5.8M parameters in 39 tensors",
        "sentencepiece",
        "model.layers.5.mlp.down_proj.weight",
    ):
        assert words in stdout
    assert json.loads(cli("inspect", FIXTURE, "--json")[1])["hyperparameters"]["num_key_value_heads"] == 4


def test_inspect_gguf(cli):
    cli(PHI4MINI, "o.gguf", "--q8")
    code, stdout, _ = cli("inspect", "o.gguf")
    assert code == 0
    for words in (
        "tokenizer.ggml.pre = 'gpt-4o'",
        "rope_factors_long.weight",
        "q8_0",
        "phi3.rope.dimension_count = 24",
        "gguf, phi3",
        "rope: 24 of 32 dimensions, theta 10000, longrope from 512 positions",
        "tokenizer kind: byte-bpe",
        "tokenizer eos: 2049 '<|endoftext|>'",
        "tokenizer chat templates: ['default']",
    ):
        assert words in stdout
    inspected = json.loads(cli("inspect", "o.gguf", "--json", "--no-tensors")[1])
    assert inspected["metadata"]["phi3.attention.head_count_kv"] == 4
    assert "tensors" not in inspected


def test_formats(cli):
    code, stdout, _ = cli("formats")
    assert code == 0
    assert "--q4 = Q4_K_M" in stdout
    assert json.loads(cli("formats", "--json")[1])["presets"]["gguf"]["q8"] == "Q8_0"


def test_folder_as_destination(cli):
    assert cli(FIXTURE, "new", "--to", "gguf", "--q8")[0] == 0
    name = "tiny-phi3-Q8_0.gguf"
    assert sorted(p.name for p in Path("new").iterdir()) == [name, f"{name}.receipt.json"]


def test_split(cli):
    assert cli(FIXTURE, "o.gguf", "--q8", "--split-max-size", "2M")[0] == 0
    parts = [f"o-0000{n}-of-00004.gguf" for n in (1, 2, 3, 4)]
    assert sorted(p.name for p in Path().iterdir()) == [".phiconv.json", *parts, "o.gguf.receipt.json"]


# ----------------------------------------------------------------------------------------- what can go wrong


def test_wrong_usage(fails):
    fails(FIXTURE, "o.bin", code=2, says="cannot tell the format")
    fails(FIXTURE, "o.gguf", "--quant", "Q9_Z", code=2, says="no quantization 'Q9_Z'; phiconv formats")
    fails(FIXTURE, "o.gguf", "--to", "mp3", code=2, says="unknown format")
    fails(FIXTURE, "o.gguf", "--split-max-size", "lots", code=2, says="write it like 2G")
    fails(FIXTURE, code=2, says="DEST is missing; write phiconv SOURCE DEST")


def test_missing_source(fails):
    fails("nowhere", "o.gguf", says="phiconv: nowhere: no such file or folder")


def test_destination_is_the_source(fails, copy, tmp_path):
    folder = copy()
    fails(
        folder / "model.safetensors",
        folder / "model.safetensors",
        "--force",
        says="the destination is the source",
    )
    fails(folder, folder, "--to", "gguf", says="the destination is the source")
    fails(folder, folder / "o.gguf", says="inside the source folder")
    fails(folder, folder / "deep" / "o.gguf", "--force", says="does not exist")
    fails(folder, tmp_path / "model" / ".." / "model" / "o.gguf", says="inside the source folder")


def test_destination_cannot_be_written(fails, tmp_path):
    (tmp_path / "o.gguf").mkdir()
    fails(FIXTURE, "nowhere/o.gguf", says="does not exist; make it first")
    (tmp_path / "file").touch()
    fails(FIXTURE, "file/o.gguf", says="file: the folder of the destination does not exist")


def test_truncated_shard(fails, copy):
    folder = copy()
    data = (FIXTURE / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(data[:-1])
    fails(folder, "o.gguf", says="it is truncated; download it again")


@pytest.mark.parametrize("name", ["tokenizer", "config"])
def test_missing_files(fails, copy, name):
    folder = copy()
    for file in folder.glob(f"{name}*"):
        file.unlink()
    fails(folder, "o.gguf", says={"tokenizer": "no tokenizer", "config": "no config.json"}[name])


def test_unknown_architecture(fails, copy):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    config["architectures"], config["model_type"] = ["MistralForCausalLM"], "mistral"
    (folder / "config.json").write_text(json.dumps(config))
    says = "MistralForCausalLM: this architecture is not supported; supported are PhiForCausalLM"
    fails(folder, "o.gguf", says=says)


def _damage(folder, value):
    """Sets the last weight of the checkpoint."""
    data = bytearray((FIXTURE / "model.safetensors").read_bytes())
    data[-2:] = struct.pack("<f", value)[2:]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(data)


def test_nan(fails, cli, copy):
    folder = copy()
    _damage(folder, np.nan)
    stderr = fails(folder, "o.gguf", "--q4", says="a weight is NaN or infinite at row")
    assert "model.safetensors: model.layers" in stderr or "model.safetensors: model.norm" in stderr
    code, _, stderr = cli(folder, "o.gguf", "--allow-nonfinite")
    assert code == 0
    assert "warning: " in stderr
    assert "1 weights are NaN or infinite" in stderr


def test_float16_overflow(fails, cli, tmp_path):
    """A value that bfloat16 holds and float16 does not."""
    from ml_dtypes import bfloat16
    from safetensors.numpy import save_file

    weights = np.ones((4, 64), bfloat16)
    weights[1, 2], weights[3, 4] = 1e9, -1e38
    save_file({"w": weights}, tmp_path / "w.safetensors")
    says = "2 weights are too large for f16; give --bf16 or --f32"
    fails("w.safetensors", "o.gguf", "--f16", "--plain", says=says)
    code, stdout, _ = cli("w.safetensors", "o.gguf", "--plain", "--f16", "--allow-nonfinite", "--json")
    assert code == 0
    assert json.loads(stdout)["tensors"][0]["overflows"] == 2
    assert cli("w.safetensors", "p.gguf", "--bf16", "--plain")[0] == 0


def test_hostile_name_cannot_drive_a_terminal(cli, tmp_path):
    from safetensors.numpy import save_file

    save_file({"a\x1b[2Jb\nc": np.full((4, 32), np.nan, np.float32)}, tmp_path / "w.safetensors")
    for arguments in (
        ("w.safetensors", "o.gguf", "--plain"),
        ("inspect", "w.safetensors"),
        ("plan", "w.safetensors", "o.gguf", "--plain"),
    ):
        _, stdout, stderr = cli(*arguments)
        assert "\x1b" not in stdout + stderr
        assert "a\\x1b[2Jb\\nc" in stdout + stderr


def test_a_bug_is_one_line_too(cli, monkeypatch):
    import phiconv.api

    monkeypatch.delenv("PHICONV_DEBUG", raising=False)
    monkeypatch.setattr(phiconv.api, "examine", lambda *_, **__: 1 / 0)
    code, _, stderr = cli("inspect", FIXTURE)
    assert code == 1
    assert stderr.startswith("phiconv: ZeroDivisionError: division by zero; set PHICONV_DEBUG=1")
    assert stderr.count("\n") == 1


def test_requantizing_is_refused_unless_it_is_allowed(fails, cli):
    cli(FIXTURE, "o.gguf", "-q", "--quant", "Q5_K_M")
    fails("o.gguf", "p.gguf", "--q4", says="is stored as q5_k: as q4_k it loses more")
    code, _, stderr = cli("o.gguf", "p.gguf", "--q4", "--allow-requantize")
    assert code == 0
    assert "note: 21 tensors were quantized a second time" in stderr
    assert cli("o.gguf", "q.gguf", "--quant", "Q5_K_M")[0] == 0
    assert Path("q.gguf").read_bytes() == Path("o.gguf").read_bytes()


def test_types_of_single_tensors(cli, fails):
    options = (
        "--tensor-type",
        r"ffn_down=Q8_0",
        "--output-tensor-type",
        "Q5_1",
        "--token-embedding-type",
        "F16",
    )
    code, stdout, _ = cli("plan", FIXTURE, "o.gguf", "--q4", *options, "--json")
    assert code == 0
    to = {t["name"]: t["to"] for t in json.loads(stdout)["tensors"]}
    assert [to[f"{n}.weight"] for n in ("blk.3.ffn_down", "output", "token_embd")] == ["q8_0", "q5_1", "f16"]
    left = json.loads(cli("plan", FIXTURE, "o.gguf", "--q4", "--leave-output-tensor", "--json")[1])
    assert {t["to"] for t in left["tensors"] if t["name"] == "output.weight"} == {"bf16"}
    fails(FIXTURE, "o.gguf", "--tensor-type", "ffn_down", code=2, says="write it as REGEX=TYPE")
    fails(FIXTURE, "o.gguf", "--tensor-type", "(=Q8_0", code=2, says="missing )")
    fails(FIXTURE, "o.gguf", "--tensor-type", "a=Q7_Z", code=2, says="no tensor can be quantized to 'Q7_Z'")
    fails(FIXTURE, "o.gguf", "--quant", "Q2_K_S", code=2, says="give --imatrix")
    fails(FIXTURE, "o.gguf", "--imatrix", "nowhere.dat", says="nowhere.dat: there is no such file")


def test_a_pytorch_file_that_would_run_something(fails, make_pytorch):
    make_pytorch.write_zip(Path("x.pt"), b"\x80\x02cos\nsystem\nX\4\0\0\0exit\x85R.", {})
    says = "x.pt: byte 2 of data.pkl: it asks for os.system, which is no part of a tensor"
    fails("x.pt", "o.gguf", says=says)
    fails("inspect", "x.pt", says="nothing was run")


def test_repack_only(fails, cli):
    fails(FIXTURE, "o.gguf", "--q8", "--repack-only", says="would be quantized, from bf16 to q8_0")
    assert cli(FIXTURE, "o.gguf", "--repack-only")[0] == 0
    stdout = cli("plan", FIXTURE, "new", "--to", "safetensors", "--repack-only")[1]
    assert f"tensors: {len(phiconv.open_model(FIXTURE).stored)} copied" in stdout


def test_fast_search(cli):
    assert cli(FIXTURE, "exact.gguf", "--q4")[0] == 0
    assert cli(FIXTURE, "fast.gguf", "--q4", "--effort", "fast")[0] == 0
    exact, fast = (phiconv.open_model(f"{n}.gguf") for n in ("exact", "fast"))
    assert Path("exact.gguf").stat().st_size == Path("fast.gguf").stat().st_size
    original = phiconv.read(phiconv.open_model(FIXTURE).stored["model.layers.2.mlp.gate_up_proj.weight"])
    errors = [np.linalg.norm(phiconv.read(m.stored["blk.2.ffn_up.weight"]) - original) for m in (exact, fast)]
    assert errors[0] != errors[1]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)


def write_gguf(path, data, kind=None):
    """A GGUF whose tensors are aligned otherwise than ours, by the gguf package."""
    import gguf

    writer = gguf.GGUFWriter(path, "another")
    writer.add_custom_alignment(128)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(3, np.float32))
    writer.add_tensor("blk.0.attn_q.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_with_another_alignment(cli):
    values = np.arange(4 * 64, dtype=np.float32).reshape(4, 64)
    write_gguf("a.gguf", values)
    assert cli("a.gguf", "b.gguf", "--f16")[0] == 0
    model = phiconv.open_model("b.gguf")
    assert np.array_equal(phiconv.read(model.stored["blk.0.attn_q.weight"]), values)


def test_types_that_cannot_be_decoded_are_not_taken_for_numbers(fails):
    from gguf import GGMLQuantizationType

    write_gguf("a.gguf", np.zeros((2, 292), np.uint8), GGMLQuantizationType.Q8_K)
    fails("a.gguf", "b.gguf", "--f32", says="is stored as q8_k, which phiconv cannot decode")
