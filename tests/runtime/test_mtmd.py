"""llama.cpp sees what the model sees: the features of pictures in mtmd, and in NumPy."""

from __future__ import annotations

import pytest

import phiconv
from make_golden_mmproj import source
from make_multimodal import picture
from mtmd_runtime import picture_features
from phiconv.forward.encoders import features
from phiconv.perception.pictures import prepare
from references import relative_l2

pytestmark = pytest.mark.runtime

# Sides of whole patches, within the limits: mtmd rounds others where the model searches for a scale.
PICTURES = [
    picture(seed, 16 * rows, 16 * columns) for seed, (rows, columns) in enumerate([(10, 13), (16, 16)])
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return phiconv.open_model(source(tmp_path_factory.mktemp("m")))


# Its GELU of the projector is the one with tanh, and its attention in float16; it rounds what it multiplies
# blocks of 8 bits with to 8 bits as well.
@pytest.mark.parametrize(("quant", "most"), [("f32", 1e-3), ("f16", 1e-3), ("q4", 2e-2)])
def test_features(llama, model, tmp_path, quant, most):
    files = phiconv.convert(model, tmp_path / "out.gguf", quant=quant).files
    made = picture_features(llama, *files, PICTURES)
    for pixels, found in zip(PICTURES, made, strict=True):
        wanted = features(model.senses.vision, prepare(model.senses, pixels))
        assert found.shape == wanted.shape
        assert relative_l2(found, wanted) < most
