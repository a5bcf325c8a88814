"""What there is to choose from: sizes that come true, memory, and what is recommended."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from click.testing import CliRunner

from paths import FIXTURES
from phiconv import MissingFileError, UnsupportedModelError, api
from phiconv.cli import main
from phiconv.conversion.outline import is_outline, open_outline
from phiconv.guide.choice import choose
from phiconv.guide.devices import DEVICES, find_device
from phiconv.guide.memory import cache_size
from phiconv.guide.offers import OFFERS
from phiconv.guide.qualities import quality_of
from phiconv.recipes import TARGETS
from phiconv.runtimes import RUNTIMES

TINY = FIXTURES / "tiny-phi4mini"
SMALL_FILES = ("*.json", "*.txt", "*.model")


@pytest.fixture
def bare(tmp_path):
    """Makes a folder of config.json and perhaps an index and a tokenizer, without weights."""

    def make(*, index=True, tokenizer=True, source=TINY):
        folder = tmp_path / source.name
        folder.mkdir()
        for pattern in SMALL_FILES if tokenizer else ("config.json",):
            for path in source.glob(pattern):
                shutil.copy(path, folder)
        if index:
            names = dict.fromkeys(api.open_model(source).stored, "model-00001-of-00001.safetensors")
            text = json.dumps({"metadata": {}, "weight_map": names})
            (folder / "model.safetensors.index.json").write_text(text)
        return folder

    return make


def sizes(choice):
    return {(row.runtime.name, row.recipe): row.size for row in (*choice.rows, *choice.too_large)}


def test_sizes_are_those_of_the_files(tmp_path, bare):
    """Also where the weights were not there when they were told, and by the very command that is told."""
    choice = choose(open_outline(bare()))
    assert is_outline(choice.model)
    assert all(row.exact for row in choice.rows)
    assert sizes(choice) == sizes(choose(api.open_model(TINY)))
    runner = CliRunner()
    for row in choice.rows:
        if not row.recommended:
            continue
        words = shlex.split(row.command)[1:]
        out = tmp_path / "out" / words[1]
        out.parent.mkdir(exist_ok=True)
        result = runner.invoke(main, [str(TINY), str(out), *words[2:], "--no-receipt", "--json", "-j1"])
        assert result.exit_code == 0, result.output
        files = [p for p in out.rglob("*") if p.is_file()] if out.is_dir() else [out]
        assert sum(p.stat().st_size for p in files if p.name != ".phiconv.json") == row.size, row.command


@pytest.mark.parametrize("index", [True, False])
def test_without_a_tokenizer_the_weights_are_counted(bare, index):
    choice = choose(open_outline(bare(index=index, tokenizer=False)))
    assert not any(row.exact for row in choice.rows)
    whole = sizes(choose(api.open_model(TINY)))
    assert all(0 < size < whole[key] for key, size in sizes(choice).items())


def test_an_outline_is_never_converted(bare, tmp_path):
    folder = bare()
    with pytest.raises(MissingFileError):
        api.convert(folder, tmp_path / "x.gguf")
    with pytest.raises(MissingFileError, match="the weights are not there"):
        api.read(next(iter(open_outline(folder).stored.values())))


@pytest.mark.parametrize("kind", ["phi", "phimoe", "qwen2", "llama"])
def test_an_outline_has_the_tensors_of_the_model(model_folder, tmp_path, kind):
    folder = model_folder(kind)
    whole = api.open_model(folder)
    shutil.copy(folder / "config.json", tmp_path / "some-name.json")
    outline = open_outline(tmp_path / "some-name.json")
    assert {n: t.shape for n, t in outline.stored.items()} == {n: t.shape for n, t in whole.stored.items()}
    assert outline.tokenizer is None


def test_what_is_no_model_stays_refused(tmp_path):
    with pytest.raises(MissingFileError):
        open_outline(tmp_path)
    shutil.copy(TINY / "model.safetensors", tmp_path)
    plain = open_outline(tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="plain tensors"):
        choose(plain)


def test_the_cache_has_a_key_and_a_value_for_each_head():
    hp = api.open_model(TINY).hyperparameters
    runtime = RUNTIMES["llama.cpp"]
    assert cache_size(hp, runtime, 100) == 2 * 4 * 4 * 32 * 100 * runtime.cache_bytes


def test_the_most_accurate_that_fits_is_recommended():
    model = api.open_model(TINY)
    every = choose(model, device=find_device("ollama")).rows
    assert [row.recipe for row in every if row.recommended] == ["Q4_K_M"]
    small = every[3].memory + 1
    some = choose(model, device=find_device("ollama"), budget=small)
    assert all(row.memory <= small for row in some.rows)
    assert all(row.memory > small for row in some.too_large)
    (best,) = (row for row in some.rows if row.recommended)
    assert best.quality.divergence == min(row.quality.divergence for row in some.rows)
    assert choose(model, budget=1).rows == ()


def test_a_memory_between_recipes_can_be_used_up():
    rows = choose(api.open_model(TINY), device=find_device("ollama")).rows
    between = (rows[0].memory * 9 + rows[1].memory) // 10
    command = choose(api.open_model(TINY), device=find_device("ollama"), budget=between).between["ollama"]
    assert "--target-size" in command


def test_what_a_format_cannot_hold_is_said(model_folder):
    model = api.open_model(model_folder("phimoe"))
    assert "litert" in choose(model).refused
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        choose(model, device=find_device("android"))


def test_every_offer_is_a_recipe_and_was_measured():
    for offer in OFFERS:
        assert TARGETS[offer.format].RECIPES.read(offer.recipe).spelling == offer.recipe
        assert quality_of(offer.format, offer.recipe) is not None
    offered = {(offer.format, offer.recipe) for offer in OFFERS}
    for device in DEVICES.values():
        assert {(device.format, recipe) for recipe in device.recipes} <= offered
