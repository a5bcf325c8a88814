"""Random weights and whole random models, heavy-tailed as trained ones are."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TILE = (85, 3072)
"""Rows and columns: the weights that phiconv handles at once, of Phi-3.5-mini's width."""

PHI35_MINI = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "sliding_window": 262144,
    "vocab_size": 32064,
}

_POOL = 1 << 16  # different weights
_BLOCK = 1 << 20  # weights written at once


def pool(seed: int = 0) -> np.ndarray:
    """Heavy-tailed weights in bfloat16's values, as float32: what tiles and models are drawn from."""
    values = np.random.default_rng(seed).standard_t(4, _POOL).astype(np.float32) * np.float32(0.02)
    bits = values.view(np.uint32)
    return (((bits + np.uint32(0x8000)) >> np.uint32(16)) << np.uint32(16)).view(np.float32)


def tile(source: str, seed: int = 0) -> np.ndarray:
    """A tile as phiconv reads it from a file of this type."""
    from phiconv import ir

    numbers = np.random.default_rng(seed).integers(0, _POOL, TILE)
    return pool()[numbers].astype(getattr(ir, source.upper()).dtype)


def write_model(folder: Path, layers: int, **overrides: Any) -> Path:
    """Writes a random model of Phi-3.5-mini's widths, a block at a time.

    Args:
        folder: Where; made if need be.
        layers: How many; the real one has 32.
        **overrides: Keys of config.json to replace.

    Returns:
        The folder.
    """
    make = _fixture("make_models")
    config = make.CONFIGS["phi3"] | PHI35_MINI | {"num_hidden_layers": layers} | overrides
    config["rope_scaling"] = make.longrope(config["hidden_size"] // config["num_attention_heads"] // 2)
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in make.shapes(config):
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    words, bits = (pool().view(np.uint32) >> np.uint32(16)).astype("<u2"), np.random.PCG64(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, offset // 2, _BLOCK):
            count = min(_BLOCK, offset // 2 - start)
            file.write(words[bits.random_raw(-(-count // 4)).view(np.uint16)[:count]].data)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for pattern in ("*token*.json", "tokenizer.model", "generation_config.json"):
        for path in (FIXTURES / "tiny-phi3").glob(pattern):
            shutil.copyfile(path, folder / path.name)
    return folder


def _fixture(name: str) -> ModuleType:
    """A script of fixtures/, as a module."""
    if str(FIXTURES) not in sys.path:
        sys.path.append(str(FIXTURES))  # for what it imports from beside it
    spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
