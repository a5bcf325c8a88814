"""Qwen2 and Qwen2.5: Llama's decoder, with biases of queries, keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.architecture import Architecture, Gguf, Mlx
from phiconv.architectures.common import hyperparameters, swiglu_decoder
from phiconv.architectures.llama import MLX_ORDER, NAMES
from phiconv.errors import UnsupportedModelError

if TYPE_CHECKING:
    from phiconv.architectures.config import Config
    from phiconv.ir.model import Hyperparameters

__all__ = ["QWEN2", "check_layers"]


def parse(config: Config) -> Hyperparameters:
    """Validates config.json of a ``Qwen2ForCausalLM``."""
    config.choice("hidden_act", ("silu",), "silu")
    check_layers(config)
    return hyperparameters(
        config,
        rope={"types": ("default",), "whole_heads": "qwen2"},
        norm_epsilon=config.number("rms_norm_eps", default=1e-6),
    )


def check_layers(config: Config) -> None:
    """Refuses layers with a sliding window, which no published model of the family has turned on.

    Raises:
        UnsupportedModelError: A layer that attends to some positions only.
    """
    layers, first = config.integer("num_hidden_layers"), config.optional_integer("max_window_layers", least=0)
    kinds = config.get("layer_types")[1]
    windowed = config.boolean("use_sliding_window", default=False) and (first or 0) < layers
    if windowed or (isinstance(kinds, list) and "sliding_attention" in kinds):
        key = "use_sliding_window" if windowed else "layer_types"
        raise UnsupportedModelError(
            "a sliding window in some of the layers is not supported", path=config.path, at=f"key {key}"
        )


QWEN2 = Architecture(
    name="qwen2",
    classes=("Qwen2ForCausalLM",),
    title="Qwen2, Qwen2.5",
    parse=parse,
    forward=swiglu_decoder,
    names=NAMES,
    biases=("attn_q", "attn_k", "attn_v"),
    gguf=Gguf(
        "qwen2",
        keys=(
            "block_count context_length embedding_length feed_forward_length attention.head_count "
            "attention.head_count_kv rope.freq_base attention.layer_norm_rms_epsilon"
        ).split(),
        head_dim=False,
    ),
    mlx=Mlx(order=MLX_ORDER, keys=("rms_norm_eps", "rope_scaling")),
)
