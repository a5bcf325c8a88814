"""The file that llama.cpp sees with, beside the model's."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader

import phiconv
from make_golden_mmproj import source
from make_multimodal import make_multimodal
from paths import FIXTURES
from phiconv.cli import main
from phiconv.errors import InputError, OutputExistsError, UsageError
from phiconv.forward.encoder_ops import vision
from phiconv.recipes import override
from phiconv_formats.gguf.projector import projector_tensors

GOLDEN = json.loads((FIXTURES / "golden_mmproj.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return source(tmp_path_factory.mktemp("models"))


def names(path):
    return sorted(p.name for p in path.iterdir() if not p.name.endswith(".receipt.json"))


@pytest.mark.parametrize("kind", GOLDEN)
def test_bytes_are_those_of_the_converter(folder, tmp_path, kind):
    quant = "q4" if kind == "q8_0" else kind
    text, projector = phiconv.convert(folder, tmp_path / "out.gguf", quant=quant).files
    assert (text.name, projector.name) == ("out.gguf", "mmproj-out.gguf")
    assert hashlib.sha256(projector.read_bytes()).hexdigest() == GOLDEN[kind]


def test_plan_knows_both_files(folder, tmp_path):
    plan = phiconv.plan(folder, tmp_path / "out.gguf", quant="q4")
    done = phiconv.convert(folder, tmp_path / "out.gguf", quant="q4", jobs=3)
    assert [(f.name, f.size) for f in plan.package.files] == [(p.name, p.stat().st_size) for p in done.files]
    assert sum("--mmproj" in note for note in plan.package.notes) == 1
    assert not any("text part" in note for note in plan.package.notes)


def test_files_of_a_text_are_the_same_with_it_and_without(folder, tmp_path):
    alone = phiconv.Choices(text_only=True)
    phiconv.convert(folder, tmp_path / "out.gguf", quant="q4", choices=alone)
    assert names(tmp_path) == ["out.gguf"]
    only_text = (tmp_path / "out.gguf").read_bytes()
    with pytest.raises(OutputExistsError):
        phiconv.convert(folder, tmp_path / "out.gguf", quant="q4")
    phiconv.convert(folder, tmp_path / "out.gguf", quant="q4", force=True)
    assert (tmp_path / "out.gguf").read_bytes() == only_text
    assert names(tmp_path) == [".phiconv.json", "mmproj-out.gguf", "out.gguf"]
    phiconv.convert(folder, tmp_path / "out.gguf", quant="q4", choices=alone, force=True)
    assert "mmproj-out.gguf" not in names(tmp_path)


def test_only_the_model_is_split(folder, tmp_path):
    phiconv.convert(folder, tmp_path / "out.gguf", quant="q8", split_max_size=40_000)
    whole = [name for name in names(tmp_path) if name.startswith("mmproj")]
    assert whole == ["mmproj-out.gguf"]
    assert "out-00001-of-" in " ".join(names(tmp_path))


def test_names_in_a_folder(folder, tmp_path):
    done = phiconv.convert(folder, tmp_path / "new", to="gguf", quant="q4")
    assert [p.name for p in done.files] == ["phi4-siglip-Q4_K_M.gguf", "mmproj-phi4-siglip-Q4_K_M.gguf"]
    long = folder.parent / ("x" * 250)
    shutil.copytree(folder, long)
    done = phiconv.convert(long, tmp_path / "long", to="gguf", quant="q4")
    assert all(p.name.endswith("-Q4_K_M.gguf") for p in done.files)


def test_other_models_have_none(tmp_path):
    phiconv.convert(make_multimodal(tmp_path / "m", "phi3v"), tmp_path / "out.gguf")
    assert "mmproj-out.gguf" not in names(tmp_path)


@pytest.mark.parametrize("rows", [(0, 13824), (0, 1), (17, 18), (47, 97), (5, 13000)])
def test_patches_are_colour_by_colour(folder, rows):
    model = phiconv.open_model(folder)
    (ours,) = (t.tensor for t in projector_tensors(model) if t.name == "v.patch_embd.weight")
    matrix = phiconv.read(model.senses.vision.tensors[vision("patch_embedding")])
    wanted = matrix.reshape(-1, 16, 16, 3).transpose(0, 3, 1, 2)
    assert ours.shape == wanted.shape
    np.testing.assert_array_equal(ours.read(*rows).astype(np.float32), wanted.reshape(-1, 16)[slice(*rows)])


def test_choices_for_the_model_leave_it_as_it_is(folder, tmp_path):
    choices = phiconv.Choices(pure=True, tensor_types=(override("ffn=Q5_0"),))
    done = phiconv.convert(folder, tmp_path / "out.gguf", quant="Q4_0", choices=choices)
    assert hashlib.sha256(done.files[1].read_bytes()).hexdigest() == GOLDEN["q8_0"]


@pytest.fixture
def with_settings(folder, tmp_path):
    """Plans a copy whose preprocessor_config.json has other keys."""

    def plan(**keys):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        path = copy / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))
        return phiconv.convert(copy, tmp_path / "out.gguf", quant="f16").files[1]

    return plan


def test_settings_of_pictures(with_settings):
    file = with_settings(image_mean=[0.25, 0.5, 0.75], max_num_patches=500, min_num_patches=7)
    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    assert fields["clip.vision.image_mean"] == [0.25, 0.5, 0.75]
    limits = [fields[f"clip.vision.image_{end}_pixels"] for end in ("min", "max")]
    assert limits == [7 * 256, 500 * 256]


@pytest.mark.parametrize(
    "keys",
    [
        {"image_mean": [0.5, 0.5]},
        {"image_std": [0.5, 0.5, 0]},
        {"image_mean": "grey"},
        {"max_num_patches": 1 << 30},
        {"min_num_patches": True},
    ],
)
def test_wrong_settings_are_refused(with_settings, keys):
    with pytest.raises(UsageError, match=f"^{next(iter(keys))} in preprocessor_config.json is"):
        with_settings(**keys)


@pytest.fixture(scope="module")
def projector(folder, tmp_path_factory):
    return phiconv.convert(folder, tmp_path_factory.mktemp("o") / "out.gguf", quant="f32").files[1]


def test_as_a_source_it_says_what_it_is(projector, tmp_path):
    shown = CliRunner().invoke(main, ["inspect", str(projector)])
    assert "gguf, what a model sees or hears with (mmproj, projector phi4)" in shown.stdout
    for target in ("mlx", "openvino"):
        with pytest.raises(InputError, match="this is what a model sees or hears with"):
            phiconv.convert(projector, tmp_path / "out", to=target)


def test_it_can_become_smaller(projector, tmp_path):
    phiconv.convert(projector, tmp_path / "o.gguf", quant="Q8_0")
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "o.gguf").tensors}
    assert types["v.position_embd.weight"] == types["v.patch_embd.weight"] == types["mm.0.bias"] == "F32"
    assert types["v.blk.0.attn_q.weight"] == "Q8_0"
    assert types["v.blk.0.ffn_down.weight"] == "F16"
