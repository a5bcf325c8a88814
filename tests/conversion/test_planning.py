"""What a plan says before anything is written."""

from __future__ import annotations

import pytest

import phiconv
from paths import FIXTURES
from phiconv.recipes import override

FIXTURE = FIXTURES / "tiny-phi3"


@pytest.mark.parametrize(
    ("to", "pattern", "like"),
    [("gguf", "fnn_down=Q8_0", "output.weight"), ("openvino", "ffn=f16", "model.embed_tokens.weight")],
)
def test_a_type_that_no_tensor_gets_is_noted(tmp_path, to, pattern, like):
    choices = phiconv.Choices(tensor_types=(override(pattern),))
    notes = phiconv.plan(FIXTURE, tmp_path / "o", to=to, choices=choices).package.notes
    assert f"--tensor-type {pattern}: no tensor has such a name; they are like {like}" in notes


def test_a_type_that_a_tensor_gets_is_not_noted(tmp_path):
    choices = phiconv.Choices(tensor_types=(override("ffn_down=Q8_0"), override("o=Q8_0")))
    notes = phiconv.plan(FIXTURE, tmp_path / "o.gguf", choices=choices).package.notes
    assert not [note for note in notes if "--tensor-type" in note]
