"""A model for one context comes back from its folder with the factors of that context only."""

from __future__ import annotations

import json

import pytest

import phiconv


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", ["phi4mini", "phimoe"])
@pytest.mark.parametrize("which", ["short", "long"])
def test_the_context_is_written_into_the_configuration(tmp_path, make_model, target, kind, which):
    folder = make_model(tmp_path / "s", kind)
    config = json.loads((folder / "config.json").read_text())
    if kind == "phimoe":
        config["rope_scaling"]["short_mscale"] = 1.5
    (folder / "config.json").write_text(json.dumps(config))
    before = phiconv.open_model(folder).hyperparameters.rope
    choices = phiconv.Choices(**{f"{which}_context": True})
    phiconv.convert(folder, tmp_path / "m", to=target, quant="f32", choices=choices)
    after = phiconv.open_model(tmp_path / "m").hyperparameters.rope
    assert before.short_factor != before.long_factor
    factors, mscale = getattr(before, f"{which}_factor"), getattr(before, f"{which}_mscale")
    assert (after.short_factor, after.long_factor) == (factors, factors)
    assert (after.short_mscale, after.long_mscale) == (mscale, mscale)
