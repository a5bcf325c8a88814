"""Run by the Python of an environment that has mlx-vlm: logits of prompts, with pictures and without.

    python mlx_vlm_logits.py FOLDER INPUTS.npz OUT.npz

INPUTS has token ids, ``NAME_ids``, of prompts; those with a picture have it made ready for the encoder,
``NAME_pixels``, and other arrays that the model wants (``NAME_image_sizes``, ``NAME_spatial_shapes``). OUT
gets logits by these names. Loading is strict. CLIP's sizes, which mlx-vlm has in its code, are the folder's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_vlm.models.phi3_v.vision import VisionModel
from mlx_vlm.utils import load_model
from safetensors import safe_open


def set_clip(folder: Path) -> None:
    """Takes the number of layers and the inner size of the encoder from the folder."""
    with safe_open(folder / "model.safetensors", "numpy") as file:
        names = [name for name in file.keys() if name.endswith("mlp.fc1.bias")]  # noqa: SIM118
        found = [
            (int(name.split(".layers.")[1].split(".")[0]), file.get_slice(name).get_shape()) for name in names
        ]
    clip = VisionModel.CLIP_VIT_LARGE_PATCH14_336_CONFIG
    clip.num_hidden_layers, (clip.intermediate_size,) = 1 + max(found)[0], max(found)[1]


def main() -> None:
    folder, inputs, out = map(Path, sys.argv[1:])
    mx.set_default_device(mx.cpu)
    if json.loads((folder / "config.json").read_text())["model_type"] == "phi3_v":
        set_clip(folder)
    model = load_model(folder)
    model.set_dtype(mx.float32)
    given = dict(np.load(inputs))
    results = {}
    for key, ids in given.items():
        name, _, kind = key.partition("_")
        if kind != "ids":
            continue
        others = {
            k.partition("_")[2]: mx.array(v)
            for k, v in given.items()
            if k.startswith(f"{name}_") and k != key
        }
        pixels = others.pop("pixels", None)
        output = model(mx.array(ids)[None], pixel_values=pixels, **others)
        results[name] = np.array(output.logits[0].astype(mx.float32))
    np.savez(out, **results)


if __name__ == "__main__":
    main()
