"""llama.cpp's bytes, by checksum: for machines that cannot run it (fixtures/make_golden.py made them)."""

from __future__ import annotations

import hashlib
import importlib.util
import json

import pytest

import phiconv
from paths import FIXTURES
from phiconv.quantizers import QUANTIZERS, encode
from phiconv.recipes.gguf import DEFAULTS
from phiconv_formats.gguf.packing import pack
from phiconv_formats.gguf.types import GGML_TYPES

GOLDEN = json.loads((FIXTURES / "golden.json").read_text())
ENCODINGS = {t.name.upper(): t.encoding for t in GGML_TYPES.values() if t.encoding in QUANTIZERS}


@pytest.fixture(scope="module")
def made():
    """The script that made the checksums: it has the inputs."""
    spec = importlib.util.spec_from_file_location("make_golden", FIXTURES / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_blocks(name, made):
    digests = {}
    for what in GOLDEN["blocks"][name]:
        weights = made.importance() if what == "importance" else None
        packed = pack(encode(made.tiles_for(name), ENCODINGS[name], weights))
        digests[what] = hashlib.sha256(packed).hexdigest()
    assert digests == GOLDEN["blocks"][name]


@pytest.mark.parametrize("model", sorted(GOLDEN["files"]))
@pytest.mark.parametrize("recipe", sorted(GOLDEN["files"]["tiny-phi3"]))
def test_files(model, recipe, made, tmp_path):
    phiconv.convert(FIXTURES / model, tmp_path / "o.gguf", quant=recipe)
    assert made.tensors_digest(tmp_path / "o.gguf") == GOLDEN["files"][model][recipe]


def test_every_type_and_recipe_has_a_checksum(tmp_path):
    assert set(ENCODINGS) <= set(GOLDEN["blocks"])
    for recipe in set(DEFAULTS) - set(GOLDEN["files"]["tiny-phi3"]) - {"F32", "F16", "BF16"}:
        with pytest.raises(phiconv.UsageError, match="--imatrix"):
            phiconv.plan(FIXTURES / "tiny-phi3", tmp_path / "o.gguf", quant=recipe)
