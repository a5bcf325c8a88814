"""How ONNX Runtime GenAI (0.18) makes pictures and sounds ready: files that name its own operations.

The operations and their settings are facts of onnxruntime-extensions (``shared/api``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from phiconv.ir.senses import Hearing, Senses

__all__ = ["PICTURES", "PROCESSOR", "SOUNDS", "processor_files"]

PROCESSOR, PICTURES, SOUNDS = "processor_config.json", "vision_processor.json", "speech_processor.json"

_CROPS, _TOKENS = 16, 144
"""As Phi-3's transformation has them, whatever its settings say."""

_MOST, _SIDE = 36, 448
"""Crops of a picture, and pixels of a side of each, of Phi-4-multimodal."""


def processor_files(senses: Senses) -> dict[str, bytes]:
    """How pictures and sounds are made ready; and preprocessor_config.json, which others read."""
    if senses.kind == "phi3_v":
        files = {PROCESSOR: _phi3()}
    else:
        files = {PICTURES: _phi4_pictures(senses.preprocessor)}
        if senses.hearing is not None:
            files[SOUNDS] = _phi4_sounds(senses.hearing.parameters)
    if senses.preprocessor:
        kept = {key: value for key, value in senses.preprocessor.items() if key != "auto_map"}
        files["preprocessor_config.json"] = json.dumps(kept, indent=2).encode()
    return files


def _operation(
    name: str, kind: str, attributes: Mapping[str, Any] | None = None, inputs: Sequence[str] = ()
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "type": kind}
    if inputs:
        found["inputs"] = [*inputs]
    if attributes:
        found["attrs"] = dict(attributes)
    return {"operation": found}


def _phi3() -> bytes:
    """Decode, and Phi-3's transformation."""
    transforms = [
        _operation("decode_image", "DecodeImage", {"color_space": "BGR"}),
        _operation("convert_to_rgb", "ConvertRGB"),
        _operation(
            "phi3_image_transform", "Phi3ImageTransform", {"num_crops": _CROPS, "num_img_tokens": _TOKENS}
        ),
    ]
    processor = {"processor": {"name": "phi_3_image_processor", "transforms": transforms}}
    return json.dumps(processor, indent=4).encode()


def _phi4_pictures(settings: Mapping[str, Any]) -> bytes:
    """Decode, choose a grid of crops and resize, normalize, cut."""
    most = settings.get("dynamic_hd", _MOST)
    half = [0.5, 0.5, 0.5]
    grid = _operation(
        "phi4_vision_dynamic_preprocess",
        "Phi4VisionDynamicPreprocess",
        {"dynamic_hd": most if type(most) is int else _MOST, "dyhd_base_resolution": _SIDE},
    )
    crops = _operation(
        "phi4_vision_processor",
        "Phi4VisionProcessor",
        {"dyhd_base_resolution": _SIDE, "interpolation": "CUBIC"},
        [":0", "phi4_vision_dynamic_preprocess:1"],
    )
    transforms = [
        _operation("decode_image", "DecodeImage", {"color_space": "RGB"}),
        grid,
        _operation("rescale", "Rescale", inputs=[":0"]),
        _operation("normalize", "Normalize", {"mean": half, "std": half}),
        crops,
    ]
    processor = {
        "name": "phi_4_vision_processor",
        "transforms": transforms,
        "output_aligner": "phi4-vision-aligner",
    }
    return json.dumps({"processor": processor}, indent=4).encode()


def _phi4_sounds(parameters: Hearing) -> bytes:
    """Decode, a spectrogram of frames of 25 ms every 10 ms, its logarithm."""
    settings: dict[str, Any] = {"audio_compression_rate": parameters.subsampling}
    for suffix, rate in (("", 16000), ("_8k", 8000)):
        frames = {"n_fft": rate * 32 // 1000, "frame_length": rate * 25 // 1000}
        hop = rate // 100
        spectrum = {**frames, "hop_length": hop, "win_fn": "hamming"}
        bands = {"chunk_size": 30, "hop_length": hop, "n_fft": 512, "n_mel": parameters.mels}
        bands |= {"feature_first": 0, "no_padding": 1}
        settings |= {f"stft_normal{suffix}/{key}": value for key, value in spectrum.items()}
        settings |= {f"logmel{suffix}/{key}": value for key, value in bands.items()}
    sequence = [
        _operation("audio_decoder", "AudioDecoderEx", {"target_sample_rates": [8000, 16000]}),
        _operation("phi_4_audio_embed", "Phi4AudioEmbed", settings),
    ]
    extraction = {"sequence": sequence, "output_aligner": "phi4-audio-aligner"}
    return json.dumps({"feature_extraction": extraction}, indent=4).encode()
