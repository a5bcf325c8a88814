"""The MLX writer and reader against each other and against what they must refuse; no runtime is needed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import PhiconvError
from phiconv.recipes import override
from phiconv_formats.shared.safetensors import open_safetensors


def convert(source, target, quant, **options):
    return phiconv.convert(source, target, to="mlx", quant=quant, choices=phiconv.Choices(**options))


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


# --------------------------------------------------------------------------------------------------- folders


def test_folder_has_everything(tmp_path):
    result = convert(FIXTURES / "tiny-phi3", tmp_path / "m", "q4")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {".phiconv.json", "receipt.json", *(p.name for p in result.files)}
    assert {"config.json", "model.safetensors", "model.safetensors.index.json", "README.md"} <= names
    assert {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"} <= names
    template = (tmp_path / "m" / "chat_template.jinja").read_text()
    assert json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())["chat_template"] == template
    card = (tmp_path / "m" / "README.md").read_text()
    assert "tiny-phi3" in card
    assert phiconv.__version__ in card
    assert "4bit" in card


def test_plan_is_exact(tmp_path):
    made = phiconv.plan(FIXTURES / "tiny-phi4mini", tmp_path / "m", to="mlx", quant="3bit-g32")
    result = convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", "3bit-g32")
    assert [(p.name, p.stat().st_size) for p in result.files] == [
        (f.name, f.size) for f in made.package.files
    ]
    weights = open_safetensors(tmp_path / "m" / "model.safetensors")
    assert sum(t.nbytes for t in made.tensors) == weights.path.stat().st_size - header_size(weights.path)


def header_size(path):
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.parametrize("quant", ["4bit", "mxfp8", "f32"])
def test_every_array_is_aligned_to_its_elements(tmp_path, quant):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", quant)
    path = tmp_path / "m" / "model.safetensors"
    start = header_size(path)
    assert start % 64 == 0
    header = json.loads(path.read_bytes()[8:start])
    assert header.pop("__metadata__") == {"format": "mlx"}
    width = {"U32": 4, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
    assert all(info["data_offsets"][0] % width[info["dtype"]] == 0 for info in header.values())


def test_shards_and_their_index(tmp_path):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "one", "4bit")
    phiconv.convert(
        FIXTURES / "tiny-phi4mini", tmp_path / "m", to="mlx", quant="4bit", split_max_size=400_000
    )
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "m").glob("model-*.safetensors"))
    assert len(files) > 2
    assert files[-1].endswith(f"-of-{len(files):05d}.safetensors")
    found = {}
    for name in files:
        for tensor, value in open_safetensors(tmp_path / "m" / name).tensors.items():
            assert index["weight_map"][tensor] == name
            found[tensor] = value.read(0, value.rows).tobytes()
    whole = open_safetensors(tmp_path / "one" / "model.safetensors").tensors
    assert found == {n: t.read(0, t.rows).tobytes() for n, t in whole.items()}
    assert index["metadata"]["total_size"] == sum(map(len, found.values()))
    assert index["metadata"]["total_parameters"] == phiconv.open_model(FIXTURES / "tiny-phi4mini").size


# ----------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("kind", ["phi", "phi2", "phi4mini-transformers5", "phimoe-transformers5"])
def test_older_keys_stand_beside_the_new_ones(tmp_path, model_folder, kind):
    convert(model_folder(kind), tmp_path / "m", "f32")
    config, source = config_of(tmp_path / "m"), config_of(model_folder(kind))
    rope = source.get("rope_parameters", source)
    assert config["rope_theta"] == rope["rope_theta"]
    assert config["torch_dtype"] == "float32"
    assert config["architectures"] == source["architectures"]
    if kind != "phimoe-transformers5":
        assert config["partial_rotary_factor"] == rope["partial_rotary_factor"]
    if "rope_parameters" in source:
        assert config["rope_parameters"] == source["rope_parameters"]
        assert config["rope_scaling"]["type"] == "longrope"
        assert config["rope_scaling"]["long_factor"] == source["rope_parameters"]["long_factor"]
        assert config["original_max_position_embeddings"] == 512
    if kind == "phimoe-transformers5":
        assert config["rope_scaling"]["long_mscale"] == pytest.approx(1.243163121016122)


def test_end_of_text_is_the_one_of_the_generation_settings(tmp_path):
    convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", "q4")
    wanted = json.loads((FIXTURES / "tiny-phi4mini" / "generation_config.json").read_text())["eos_token_id"]
    assert config_of(tmp_path / "m")["eos_token_id"] == wanted


def test_other_schemes_are_named_one_by_one(tmp_path, model_folder):
    types = (override("embed_tokens=8bit-g32"), override("lm_head=f16"))
    convert(model_folder("phimoe"), tmp_path / "m", "4bit-g32", tensor_types=types)
    config = config_of(tmp_path / "m")
    scheme = config["quantization"]
    assert config["quantization_config"] == scheme
    assert (scheme["bits"], scheme["group_size"], scheme["mode"]) == (4, 32, "affine")
    assert scheme["model.embed_tokens"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    assert scheme["lm_head"] is False
    assert scheme["model.layers.0.block_sparse_moe.gate"] == {"group_size": 64, "bits": 8, "mode": "affine"}


# --------------------------------------------------------------------------------------------------- refusals


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("keep")
    with pytest.raises(phiconv.OutputExistsError, match="not empty"):
        convert(FIXTURES / "tiny-phi3", tmp_path / "m", "q4")
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["mine.txt"]


def test_force_replaces_an_older_output_with_its_shards(tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m", to="mlx", quant="q4", split_max_size=500_000)
    (tmp_path / "m" / "LICENSE.txt").write_text("keep")
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "m", to="mlx", quant="q8", force=True)
    assert [p.name for p in (tmp_path / "m").glob("*.safetensors")] == ["model.safetensors"]
    assert (tmp_path / "m" / "LICENSE.txt").read_text() == "keep"
    assert phiconv.open_model(tmp_path / "m").stored["lm_head.weight"].encoding.bits == 8


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "m").mkdir()
    convert(FIXTURES / "tiny-phi3", tmp_path / "m", "q4")
    assert (tmp_path / "m" / "config.json").exists()


@pytest.mark.parametrize(
    ("kind", "quant", "options", "says"),
    [
        ("phimoe-tiny", "q4", {}, "Phi-tiny-MoE"),
        ("phi", "mixed_3_6", {}, "mixed_3_6"),
        ("phi3", "q4", {"tensor_types": (override("lm_head=Q4_K"),)}, "no tensor can be turned into 'Q4_K'"),
        ("phi3", "q4", {"tensor_types": (override("lm_head=mixed_3_6"),)}, "mixed_3_6"),
        ("phi3", "f16", {"dtype": "bf16"}, "contradicts"),
        ("phi3", "7bit", {}, "no quantization"),
        ("phi3", "q4", {"pure": True}, "--pure means nothing for mlx"),
        ("phi3", "q4", {"short_context": True}, "--short-context"),
        ("phi3", "q4", {"long_context": True}, "--long-context means nothing for this model"),
        ("phi4mini", "q4", {"short_context": True, "long_context": True}, "contradicts --long-context"),
    ],
)
def test_what_cannot_be_is_refused_before_a_weight_is_read(
    tmp_path, model_folder, kind, quant, options, says
):
    with pytest.raises(PhiconvError, match=says):
        phiconv.plan(
            model_folder(kind), tmp_path / "m", to="mlx", quant=quant, choices=phiconv.Choices(**options)
        )


def test_plain_tensors_are_no_model_for_mlx(tmp_path):
    shutil.copy(FIXTURES / "tiny-phi3" / "model.safetensors", tmp_path / "x.safetensors")
    with pytest.raises(phiconv.errors.MissingFileError, match="no config"):
        phiconv.plan(tmp_path / "x.safetensors", tmp_path / "m", to="mlx")


def rewrite(source, target, change):
    """A copy of a folder whose tensors are changed, float32 or bfloat16 as they are."""
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : header_size(path)])
    change(
        data, {n: header_size(path) + i["data_offsets"][0] for n, i in header.items() if n != "__metadata__"}
    )
    path.write_bytes(data)
    return target


@pytest.mark.parametrize("quant", ["4bit", "mxfp4", "f16"])
def test_a_weight_too_large_for_the_dtype_is_refused(tmp_path, quant):
    def enlarge(data, offsets):
        at = offsets["model.layers.0.mlp.down_proj.weight"]
        data[at : at + 2] = np.array([0x4900], "<u2").tobytes()  # bfloat16: 524288

    folder = rewrite(FIXTURES / "tiny-phi3", tmp_path / "source", enlarge)
    with pytest.raises(phiconv.WeightError, match="too large"):
        convert(folder, tmp_path / "m", quant, dtype="f16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    if quant != "f16":
        convert(folder, tmp_path / "m", quant, dtype="bf16")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_a_kill_leaves_no_folder_of_that_name(tmp_path):
    script = (
        "import os, signal, phiconv, sys\n"
        "def stop(done, total, name):\n"
        "    if done * 2 > total: os.kill(os.getpid(), signal.SIGKILL)\n"
        "phiconv.convert(sys.argv[1], sys.argv[2], to='mlx', quant='q4', jobs=1, progress=stop)\n"
    )
    command = [sys.executable, "-c", script, str(FIXTURES / "tiny-phi3"), str(tmp_path / "m")]
    done = subprocess.run(command, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
