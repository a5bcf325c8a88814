"""mlx-vlm loads the folders of models that see, and answers as the models do.

It needs an environment of its own (``pip install 'mlx-vlm[cpu]'``, 1.1 GB): ``MLX_VLM`` in the environment
names its Python.
"""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

import phiconv
from make_multimodal import picture
from paths import ROOT
from phiconv.forward.encoders import features
from phiconv.forward.interpreter import compute
from phiconv.perception.pictures import prepare
from references import relative_l2

PEER = os.environ.get("MLX_VLM", "")
TEXT = np.arange(5, 30)

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(not PEER, reason="MLX_VLM names no Python that has mlx-vlm"),
]

# Height and width. What mlx-vlm 0.7 makes of the last of each is wrong, as a note says.
PICTURES = {
    "phi3v-wide": {"tall": (672, 336), "wide": (336, 672)},
    "phi4-siglip": {"square": (256, 256), "wide": (208, 256)},
}


@pytest.fixture(scope="module", params=PICTURES)
def source(request, make_multimodal, tmp_path_factory):
    kind = request.param
    return kind, make_multimodal(tmp_path_factory.mktemp("m") / kind, kind, seed=7)


def prompts(kind, model):
    """What mlx-vlm gets; and the logits by NumPy."""
    given, wanted = {"text_ids": TEXT}, {"text": compute(model, TEXT[None]).all()[0]}
    for name, size in PICTURES[kind].items():
        seen = prepare(model.senses, picture(3, *size))
        found = features(model.senses.vision, seen)
        places = np.full(len(found), -1)
        ids = np.concatenate([TEXT[:7], places, TEXT[7:12]])
        wanted[name] = compute(model, ids[None], features=found).all()[0]
        given[f"{name}_ids"] = ids
        if kind == "phi4-siglip":  # one token stands for the picture
            rows, columns = (side // 16 for side in size)
            pixels = seen.pixels.reshape(3, rows, 16, columns, 16).transpose(1, 3, 2, 4, 0)
            given[f"{name}_ids"] = np.concatenate([TEXT[:7], [-200], TEXT[7:12]])
            given[f"{name}_pixels"] = pixels.reshape(1, rows * columns, -1)
            given[f"{name}_spatial_shapes"] = np.array([[rows, columns]])
        else:
            given[f"{name}_pixels"] = seen.pixels[None]
            given[f"{name}_image_sizes"] = 336 * np.array([seen.grid])
    return given, wanted


# Quantized folders are compared with what NumPy computes of the folder itself.
@pytest.mark.parametrize("quant", ["f32", "4bit-g32", "8bit"])
def test_logits(source, tmp_path, quant):
    kind, folder = source
    phiconv.convert(folder, tmp_path / "out", to="mlx", quant=quant)
    given, wanted = prompts(kind, phiconv.open_model(tmp_path / "out"))
    np.savez(tmp_path / "in.npz", **given)
    program = ROOT / "tests/helpers/mlx_vlm_logits.py"
    command = [PEER, program, tmp_path / "out", tmp_path / "in.npz", tmp_path / "logits.npz"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    made = np.load(tmp_path / "logits.npz")
    for name, logits in wanted.items():
        assert made[name].shape == logits.shape
        assert (relative_l2(made[name], logits) < 1e-5) == (name != "wide"), name
