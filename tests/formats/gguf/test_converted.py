"""A GGUF has the keys, in their order, and the tensors that llama.cpp's own converter writes.

fixtures/converted.json has what it wrote; fixtures/make_converted.py makes it again.
"""

from __future__ import annotations

import json

import pytest

import phiconv
from make_converted import contents
from paths import FIXTURES

CONVERTED = json.loads((FIXTURES / "converted.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", CONVERTED)
def test_keys_and_tensors_are_the_converters(kind, model_folder, tmp_path):
    path = phiconv.convert(model_folder(kind), tmp_path / "out.gguf", quant="BF16").files[0]
    found = json.loads(json.dumps(contents(path)))
    assert list(found["keys"].items()) == list(CONVERTED[kind]["keys"].items())
    assert found["tensors"] == CONVERTED[kind]["tensors"]
