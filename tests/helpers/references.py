"""The stored logits of transformers (see fixtures/README.md), and the random models that they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from paths import FIXTURES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType


_MOE_ROPE = {"long_mscale": 1.3, "short_mscale": 1.243163121016122, "original_max_position_embeddings": 512}

# Reference: kind, and keys of config.json that are otherwise.
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("phi", {}),
    "phi2": ("phi2", {}),
    "phi3": ("phi3", {}),
    "phi3-gqa": ("phi3-gqa", {}),
    "phi3-su": ("phi3-su", {}),
    "phi3-window": ("phi3", {"sliding_window": 7}),
    "phi4": ("phi4", {}),
    "phi4mini": ("phi4mini", {}),
    "phi4mini-long": ("phi4mini", {}),
    "phimoe": ("phimoe", {}),
    "phimoe-tiny": ("phimoe-tiny", {"sliding_window": 7}),
    "phimoe-long": ("phimoe", {"rope_scaling": _MOE_ROPE}),
    "llama": ("llama", {}),
    "llama3": ("llama3", {}),
    "llama3-long": ("llama3", {}),
    "llama-bias": ("llama-bias", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-untied": ("qwen2-untied", {}),
    "qwen3": ("qwen3", {}),
    "qwen3-untied": ("qwen3-untied", {}),
}


def random_model(make_model: Callable[..., Path], make_models: ModuleType, folder: Path, name: str) -> Path:
    """Writes the model of a reference."""
    kind, keys = RANDOM[name]
    if "rope_scaling" in keys:  # the factors are those of the kind
        keys = {"rope_scaling": make_models.CONFIGS[kind]["rope_scaling"] | keys["rope_scaling"]}
    return make_model(folder, kind, seed=7, **keys)


def open_reference(name: str) -> dict[str, Any]:
    """The arrays of a file in fixtures/."""
    with np.load(FIXTURES / name) as arrays:
        return dict(arrays)


def relative_l2(values: Any, expected: Any) -> float:
    """How far arrays of one shape are from each other."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))
