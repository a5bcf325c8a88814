"""Adapters for tests: the stored ones that PEFT made, and new ones of given tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from paths import FIXTURES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STORED = {
    "plain": "phi3",
    "rslora": "phi3",
    "dora": "phi3-gqa",
    "patterns": "phi3",
    "whole": "phi3",
    "apart": "llama",
    "some": "llama",
    "biases": "phi2",
    "embedding": "phi4mini",
    "head": "phi4mini",
    "mixture": "phimoe",
}
"""The adapters of fixtures/adapters, and the kind of model (seed 7) that each is of."""

PREFIX = "base_model.model."
QKV = "model.layers.0.self_attn.qkv_proj"


def stored_adapter(name: str) -> Path:
    """The folder of a stored adapter."""
    return FIXTURES / "adapters" / name


def merged_logits(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A prompt, and what PEFT computes at every eighth token of it with a stored adapter."""
    with np.load(FIXTURES / "references" / "adapters.npz") as arrays:
        apart = f"{name}/apart"
        return arrays["input_ids"], arrays[apart if apart in arrays else name]


def write_adapter(folder: Path, tensors: Mapping[str, Any], **keys: Any) -> Path:
    """Writes an adapter of tensors by their names without the prefix that all have."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {PREFIX + name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(arrays, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"} | keys
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def low_rank(module: str, rows: int, columns: int, rank: int = 2, seed: int = 0) -> dict[str, Any]:
    """A and B of a module, random."""
    random = np.random.default_rng(seed)
    a, b = random.normal(0, 0.2, (rank, columns)), random.normal(0, 0.2, (rows, rank))
    return {
        f"{module}.lora_A.weight": a.astype(np.float32),
        f"{module}.lora_B.weight": b.astype(np.float32),
    }
