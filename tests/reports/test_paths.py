"""What somebody gives instead of a model is told apart, by what it is, and said in one line with the cure."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.numpy import load_file

import phiconv
from paths import FIXTURES
from phiconv.errors import InputError, MissingFileError

TINY = FIXTURES / "tiny-phi3"


def refusal(path, kind=MissingFileError):
    for call in (phiconv.open_model, lambda p: phiconv.plan(p, "o.gguf"), lambda p: phiconv.compare(p, p)):
        with pytest.raises(kind) as caught:
            call(path)
    message = str(caught.value)
    assert message.isprintable()
    return message


# ---------------------------------------------------------------------------------------------- nothing there


@pytest.mark.parametrize(
    ("path", "says", "hint"),
    [
        ("microsoft/Phi-4-mini-instruct", "looks like a name on the Hugging Face hub", "download it first"),
        ("org/name.v1.5", "looks like a name on the Hugging Face hub", "download it first"),
        ("https://huggingface.co/microsoft/phi-4", "an address, and not a file or folder", "works offline"),
        ("hf://microsoft/phi-4", "an address, and not a file or folder", "works offline"),
        ("S3://bucket/model.safetensors", "an address", "download it first"),
        ("no-such-folder", "no such file or folder", ""),
        ("/no/such/folder", "no such file or folder", ""),
    ],
)
def test_nothing_is_there(tmp_path, monkeypatch, path, says, hint):
    monkeypatch.chdir(tmp_path)
    message = refusal(path)
    assert says in message
    assert hint in message


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(TINY, tmp_path / "m")
    result = phiconv.convert("~/m", "~/o.gguf", quant="q8")
    assert result.files == (tmp_path / "o.gguf",)
    assert "no such file or folder" in refusal("~/n")
    assert "no such file or folder" in refusal("~nobody-of-this-name/m")


def test_a_name_that_differs_in_case(tmp_path):
    (tmp_path / "Model.gguf").write_bytes(b"GGUF")
    assert "there is Model.gguf" in refusal(tmp_path / "model.gguf")


def test_a_hub_name_whose_first_half_is_a_folder_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert "hub" not in refusal("models/phi-4")


# ---------------------------------------------------------------------------------------------------- folders


def model_in(folder, *names):
    """A model folder, of a few files only."""
    folder.mkdir(parents=True)
    for name in names or ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, folder)
    return folder


def test_an_empty_folder(tmp_path):
    assert "an empty folder; the download may have failed" in refusal(tmp_path)


def test_a_folder_of_checkpoints(tmp_path):
    for step in (500, 1000, 1500):
        model_in(tmp_path / "out" / f"checkpoint-{step}")
    message = refusal(tmp_path / "out")
    assert "a folder of models: checkpoint-500, checkpoint-1000, checkpoint-1500" in message
    assert "give one of them, as checkpoint-500" in message


def test_a_folder_with_a_level_too_many(tmp_path):
    model_in(tmp_path / "Phi-3" / "Phi-3")
    assert "a folder of models: Phi-3; give one of them, as Phi-3" in refusal(tmp_path / "Phi-3")


def test_the_cache_of_the_hub(tmp_path):
    snapshot = model_in(tmp_path / "models--org--my-model" / "snapshots" / ("a" * 40))
    (tmp_path / "models--org--my-model" / "blobs").mkdir()
    assert "the cache of the Hugging Face hub, with org/my-model" in refusal(tmp_path)
    assert f"give snapshots/{'a' * 40} in it" in refusal(tmp_path / "models--org--my-model")
    assert phiconv.open_model(snapshot).architecture == "phi3"


def test_a_model_in_the_cache_is_named_after_its_repository(tmp_path):
    snapshot = tmp_path / "models--org--my-model" / "snapshots" / ("0123456789" * 4)
    shutil.copytree(TINY, snapshot)
    config = json.loads((snapshot / "config.json").read_text())
    config.pop("_name_or_path", None)
    (snapshot / "config.json").write_text(json.dumps(config))
    gguf = phiconv.convert(snapshot, tmp_path / "out", to="gguf", quant="q8").files[0]
    assert gguf.name == "my-model-Q8_0.gguf"
    assert "My Model" in phiconv.open_model(gguf).metadata["general.name"].value
    phiconv.convert(snapshot, tmp_path / "mlx", to="mlx")
    assert "# my-model" in (tmp_path / "mlx" / "README.md").read_text()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("__0_0.distcp", ".metadata"), "the state of a training with FSDP, in pieces; gather it"),
        (("pytorch_model_fsdp_0",), "with FSDP"),
        (
            ("zero_pp_rank_0_mp_rank_00_model_states.pt",),
            "with DeepSpeed, in pieces; gather it: zero_to_fp32",
        ),
        (("global_step500",), "with DeepSpeed"),
        (("zero_to_fp32.py", "latest"), "with DeepSpeed"),
    ],
)
def test_states_of_a_training(tmp_path, names, says):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert says in refusal(tmp_path)


def test_a_configuration_without_weights(tmp_path):
    folder = model_in(tmp_path / "m", "config.json", "tokenizer.json")
    assert "no .safetensors file in this folder; the download may be incomplete" in refusal(folder)


# --------------------------------------------------------------------------------------------- names of files


@pytest.fixture
def gguf(tmp_path):
    return phiconv.convert(TINY, tmp_path / "original.gguf", quant="q8").files[0]


@pytest.mark.parametrize(
    "name", ["model.GGUF", "sha256-blob", "renamed.bin", "model.safetensors", "x.gguf.1"]
)
def test_a_gguf_of_any_name(tmp_path, gguf, name):
    path = gguf.rename(tmp_path / name)
    model = phiconv.open_model(path)
    assert (model.format, model.architecture) == ("gguf", "phi3")


@pytest.mark.parametrize("name", ["MODEL.SAFETENSORS", "blob", "weights.bin", "x.pt"])
def test_safetensors_of_any_name(tmp_path, name):
    shutil.copy(TINY / "model.safetensors", tmp_path / name)
    shutil.copy(TINY / "config.json", tmp_path)
    model = phiconv.open_model(tmp_path / name)
    assert (model.format, model.architecture) == ("safetensors", "phi3")


@pytest.mark.parametrize("name", ["state_dict.PTH", "last.ckpt", "blob", "x.safetensors"])
def test_pytorch_of_any_name(tmp_path, name):
    shutil.copy(FIXTURES / "pytorch" / "state_dict.pth", tmp_path / name)
    assert phiconv.open_model(tmp_path / name).format == "pytorch"


def test_a_link_to_a_blob(tmp_path):
    (tmp_path / "blobs").mkdir()
    shutil.copy(TINY / "model.safetensors", tmp_path / "blobs" / "abc")
    shutil.copy(TINY / "config.json", tmp_path)
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    model = phiconv.open_model(tmp_path)
    assert model.architecture == "phi3"
    assert len(load_file(tmp_path / "blobs" / "abc")) == len(model.stored)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64, b"GGU", b"{}"])
def test_what_is_nothing(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert "not a kind of file that phiconv reads" in refusal(tmp_path / "x", InputError)


@pytest.mark.parametrize("name", ["openvino_model", "M"])
def test_the_weights_of_an_openvino_model(tmp_path, name):
    end = ".xml" if name.islower() else ".XML"
    (tmp_path / f"{name}{end}").write_bytes(b"<net/>")
    (tmp_path / f"{name}{end.replace('xml', 'bin').replace('XML', 'BIN')}").write_bytes(b"weights")
    path = next(p for p in tmp_path.iterdir() if p.suffix.lower() == ".bin")
    message = refusal(path, InputError)
    assert "these are the weights of an OpenVINO model" in message
    assert f"give {name}{end}" in message
