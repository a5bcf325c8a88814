"""The text part of models that see or hear goes everywhere, as if it were a model by itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import phiconv
from phiconv.architectures.multimodal import KINDS
from phiconv.cli import main
from phiconv.errors import ConfigError, InputError, MalformedFileError
from phiconv.ir.model import Role
from phiconv_formats import FORMATS
from references import open_reference, relative_l2

TEXTS = {"phi3v": "phi3-su", "phi4mm": "phi4mini", "phi4-multimodal": "phi4mini", "phi4-siglip": "phi4"}
WITH_ADAPTERS = ["phi4mm", "phi4-multimodal"]
SEEING = [name for name, target in FORMATS.items() if target.sees]
"""Targets that would take encoders along."""

TARGETS = ["gguf", "mlx", "onnx", "openvino", "safetensors"]
HALF = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def folder_of(make_multimodal, make_model, tmp_path_factory):
    """The folder of a multimodal model with seed 7, or of the model of text with the same weights."""
    root = tmp_path_factory.mktemp("models")

    def find(kind):
        if not (root / kind).exists():
            (make_multimodal if kind in TEXTS else make_model)(root / kind, kind, seed=7)
        return root / kind

    return find


@pytest.fixture
def changed(folder_of, tmp_path):
    """A copy of a model whose tensors and keys of config.json a function has changed."""

    def make(kind, change):
        folder = tmp_path / "changed"
        shutil.copytree(folder_of(kind), folder)
        with (folder / "model.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = {n: np.zeros(t["shape"], np.float32) for n, t in header.items() if n != "__metadata__"}
        config = json.loads((folder / "config.json").read_text())
        change(tensors, config)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def check(path, kind):
    kept = open_reference(f"references/{TEXTS[kind]}.npz")
    logits = phiconv.logits(path, kept["input_ids"][None])[0]
    assert relative_l2(logits[kept["positions"]], kept["logits"]) < 1e-5
    assert (logits.argmax(axis=-1) == kept["argmax"]).all()


def read_all(model):
    return {role: phiconv.read(tensor) for role, tensor in model.tensors.items()}


@pytest.mark.parametrize("kind", TEXTS)
def test_logits_are_those_of_the_text_model(folder_of, kind):
    check(folder_of(kind), kind)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", TEXTS)
def test_every_target(folder_of, tmp_path, kind, target):
    output = tmp_path / ("out.gguf" if target == "gguf" else "out")
    choices = phiconv.Choices(text_only=target in SEEING)
    done = phiconv.convert(folder_of(kind), output, to=target, quant="f32", choices=choices)
    assert sum("only the text part" in note for note in done.notes) == 1
    check(output, kind)
    config = output / "config.json"
    if config.exists():
        text = config.read_text()
        assert json.loads(text)["model_type"] == "phi3"
        assert not [key for key in ("img_processor", "vision_", "audio", "_lora", "mm_") if key in text]


@pytest.mark.parametrize("kind", TEXTS)
def test_files_are_those_of_the_text_model(folder_of, tmp_path, kind):
    files = []
    for source in (kind, TEXTS[kind]):
        folder = tmp_path / source / "model"
        shutil.copytree(folder_of(source), folder)
        output, *_ = phiconv.convert(folder, tmp_path / source / "out.gguf", quant="Q8_0").files
        files.append(output.read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", TEXTS)
def test_inspect_shows_all_of_it(folder_of, kind):
    told = CliRunner().invoke(main, ["inspect", str(folder_of(kind)), "--json"])
    shown = CliRunner().invoke(main, ["inspect", str(folder_of(kind))])
    found = json.loads(told.stdout)
    assert (told.exit_code, found["architecture"]) == (0, "phi3")
    expected = {"vision", "audio"} if kind.startswith("phi4m") or kind == "phi4-multimodal" else {"vision"}
    assert {*found["encoders"]} == expected
    assert all(f"  {name}: " in shown.stdout for name in expected)
    (names,) = (k for k in KINDS if found["stated_architecture"] in k.names)
    beside = [t["name"] for t in found["tensors"] if names.beside(t["name"])]
    assert len(beside) > 20
    assert all(name in shown.stdout for name in beside)


@pytest.mark.parametrize("kind", WITH_ADAPTERS)
def test_own_adapters_are_merged_by_name(folder_of, kind):
    plain = read_all(phiconv.open_model(folder_of(kind)))
    stored = phiconv.open_model(folder_of("phi4mm"), plain=True).stored
    down = Role("ffn_down", 1)
    for name, weight in (("vision", 1.0), ("speech", -0.5)):
        model = phiconv.open_model(folder_of(kind), lora=[(name, weight)])
        a, b = (phiconv.read(stored[f"{HALF}.lora_{part}.{name}.weight"]) for part in "AB")
        found = read_all(model)
        np.testing.assert_allclose(found[down], plain[down] + weight * 2 * b @ a, rtol=0, atol=1e-5)
        same = {role for role, values in plain.items() if np.array_equal(found[role], values)}
        assert {role.name for role in same} == {"token_embedding", "attn_norm", "ffn_norm", "output_norm"}
        assert "is merged: 8 matrices of rank" in model.merged[0]


@pytest.mark.parametrize("target", ["gguf", "openvino"])
@pytest.mark.parametrize("name", ["vision", "speech"])
def test_both_styles_of_adapters_are_the_same(folder_of, tmp_path, name, target):
    ids = open_reference("references/phi4mini.npz")["input_ids"][None]
    logits = []
    for kind in WITH_ADAPTERS:
        output = tmp_path / (f"{kind}.gguf" if target == "gguf" else kind)
        command = [str(folder_of(kind)), str(output), "--to", target, "--f32", "--lora", name]
        assert CliRunner().invoke(main, ["convert", *command]).exit_code == 0
        logits.append(phiconv.logits(output, ids))
    np.testing.assert_array_equal(*logits)
    assert np.abs(logits[0] - phiconv.logits(folder_of("phi4mm"), ids)).max() > 0.1


def test_what_both_see_and_hear_with_is_compared(folder_of):
    compared = phiconv.compare(*map(folder_of, WITH_ADAPTERS))
    assert compared.total.relative_rmse == 0
    assert {"vision", "audio"} < {t.name.partition(".")[0] for t in compared.tensors}
    assert not compared.without_encoders


def test_names_of_adapters_are_those_of_this_model(folder_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for kind, name in (("phi3v", "vision"), ("phi4mm", "sound")):
        with pytest.raises(InputError, match=name):
            phiconv.open_model(folder_of(kind), lora=[name])


def without(part):
    return lambda tensors, _: [tensors.pop(name) for name in [*tensors] if part in name]


def with_tensor(name, *shape):
    return lambda tensors, _: tensors.update({name: np.zeros(shape, np.float32)})


def with_keys(**keys):
    return lambda _, config: config.update(keys)


BAD = {
    "no vision": (
        "phi3v",
        without("vision_embed"),
        MalformedFileError,
        r"vision_embed_tokens\.\*: .* part for vision",
    ),
    "no audio": ("phi4mm", without("audio_embed"), MalformedFileError, "part for audio"),
    "no projector": ("phi4-siglip", without("model.mm_"), MalformedFileError, r"mm_projector\.\*: .* vision"),
    "text tensor missing": (
        "phi3v",
        without("1.mlp.down"),
        MalformedFileError,
        "down_proj.weight: .* missing",
    ),
    "unknown tensor": ("phi3v", with_tensor("model.other.weight", 2, 2), MalformedFileError, r"model\.other"),
    "other tower": (
        "phi4-siglip",
        with_tensor("model.vision_embed_tokens.glb_GN", 1),
        MalformedFileError,
        "vision_embed_tokens",
    ),
    "misshapen": (
        "phi4mm",
        with_tensor("model.norm.weight", 3),
        ConfigError,
        r"model\.norm\.weight: has shape",
    ),
    "other sizes": ("phi4-siglip", with_keys(hidden_size=32), ConfigError, "has shape"),
    "doubled": ("phi4mm", with_tensor(f"{HALF}.weight", 128, 96), MalformedFileError, "with .base_layer and"),
    "no A": (
        "phi4mm",
        without(f"{HALF}.lora_A.vision"),
        MalformedFileError,
        "lora_A.vision.weight: .* missing",
    ),
    "no B": (
        "phi4mm",
        without(f"{HALF}.lora_B.speech"),
        MalformedFileError,
        "lora_B.speech.weight: .* missing",
    ),
    "no base": ("phi4mm", without(f"{HALF}.base_layer"), MalformedFileError, "not there as .base_layer"),
    "rank": ("phi4mm", with_keys(vision_lora={"r": 4, "lora_alpha": 8}), MalformedFileError, "not of rank 4"),
    "no rank": ("phi4mm", with_keys(speech_lora={"lora_alpha": 8}), ConfigError, r"key speech_lora\.r"),
    "no adapter": ("phi4mm", with_keys(speech_lora=None), ConfigError, "key speech_lora: missing"),
    "wide adapter": (
        "phi4mm",
        with_tensor(f"{HALF}.lora_A.vision.weight", 8, 95),
        ConfigError,
        r"is for a shape of \[128, 95\]",
    ),
    "third adapter": (
        "phi4mm",
        with_tensor(f"{HALF}.lora_A.smell.weight", 8, 96),
        InputError,
        "LoRA adapter",
    ),
    "adapter elsewhere": ("phi3v", with_tensor(f"{HALF}.lora_A.vision.weight", 8, 96), InputError, "LoRA"),
    "wrapped elsewhere": (
        "phi4-multimodal",
        with_tensor(f"{HALF}.base_layer.weight", 2),
        InputError,
        "does not have",
    ),
    "text config": (
        "phi3v",
        with_keys(architectures=["Phi3ForCausalLM"], model_type="phi3"),
        MalformedFileError,
        "this architecture does not have",
    ),
    "two models": ("phi3v", with_keys(model_type="phi3"), ConfigError, "phi3 are different models"),
    "two of these": ("phi4mm", with_keys(model_type="phi3_v"), ConfigError, "are different models"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused(changed, what):
    kind, change, error, says = BAD[what]
    folder = changed(kind, change)
    with pytest.raises(error, match=says) as caught:
        phiconv.open_model(folder)
    assert str(caught.value).isprintable()
