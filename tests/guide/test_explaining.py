"""Whatever can be asked for by name is explained by name."""

from __future__ import annotations

import pytest

from phiconv import UsageError
from phiconv.guide.explaining import explain
from phiconv.guide.format_terms import FORMAT_TERMS
from phiconv.guide.terms import TERMS
from phiconv.recipes import TARGETS
from phiconv_formats import FORMATS


@pytest.mark.parametrize("target", TARGETS)
def test_every_recipe_and_type_has_an_entry(target):
    recipes = TARGETS[target]
    for name in {*recipes.RECIPES.names(), *recipes.TYPES.names(), *recipes.PRESETS}:
        found = [e for e in explain(name) if target in e.kind or e.kind == "float type"]
        assert found, name
        for each in found:
            assert all(sentence.rstrip().endswith(".") for sentence in each.sentences)
            assert each.origin
            assert each.where


def test_every_format_and_word_has_an_entry():
    written = [name for name, f in FORMATS.items() if f.writer is not None]
    for word in (*TERMS, *FORMAT_TERMS, *written):
        assert [each.kind for each in explain(word)] == ["word"]
    for term in {**TERMS, **FORMAT_TERMS}.values():
        assert len(term.sentences) == 3
        assert all(sentence.endswith(".") for sentence in term.sentences)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("q4_k_m", ["recipe of gguf"]),
        ("Q6_K", ["recipe of gguf", "type of gguf"]),
        ("Group_Size", ["word"]),
        ("INT4_G64_asym", ["recipe of onnx", "recipe of openvino"]),
        ("fp16", ["float type"]),
    ],
)
def test_names_are_found_however_they_are_spelled(name, known):
    assert [each.kind for each in explain(name)] == known


@pytest.mark.parametrize(
    ("name", "meant"), [("imatirx", "imatrix"), ("wi4b23", "wi4b32"), ("grup-size", "group")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name, meant):
    with pytest.raises(UsageError) as caught:
        explain(name)
    assert f"did you mean {meant}" in str(caught.value)
