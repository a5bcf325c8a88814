"""phi-1, phi-1.5, phi-2: LayerNorm, parallel attention and GELU blocks, partial rotary, biases everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.architectures.architecture import Architecture, Gguf, Mlx
from phiconv.architectures.common import hyperparameters
from phiconv.errors import UnsupportedModelError
from phiconv.forward.ops import Attention
from phiconv.ir.model import Hyperparameters, Role

if TYPE_CHECKING:
    from phiconv.architectures.config import Config
    from phiconv.forward.ops import Ops, R, V

__all__ = ["PHI"]


def parse(config: Config) -> Hyperparameters:
    """Validates config.json of a ``PhiForCausalLM``."""
    config.choice("hidden_act", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    if config.boolean("qk_layernorm", default=False):
        raise UnsupportedModelError(
            "normalised queries and keys are not supported", path=config.path, at="key qk_layernorm"
        )
    return hyperparameters(
        config,
        rope={"partial_rotary_factor": 0.5},
        norm_epsilon=config.number("layer_norm_eps", "layer_norm_epsilon", default=1e-5),
        intermediate_size=config.integer("intermediate_size", default=4 * config.integer("hidden_size")),
    )


def forward(ops: Ops[V, R], hp: Hyperparameters) -> R:
    """The decoder: attention and feed-forward read the same normalised input, and both are added."""
    x = ops.embed(Role("token_embedding"))
    for n in range(hp.num_hidden_layers):
        y = ops.layer_norm(x, Role("attn_norm", n), hp.norm_epsilon)
        attended = ops.linear(ops.attention(y, n, Attention.of(hp)), Role("attn_output", n))
        inner = ops.activate(ops.linear(y, Role("ffn_up", n)), "gelu_tanh")
        x = ops.add(x, ops.add(attended, ops.linear(inner, Role("ffn_down", n))))
    return ops.logits(ops.layer_norm(x, Role("output_norm"), hp.norm_epsilon), Role("output"))


NAMES = {
    "token_embedding": "model.embed_tokens",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
    "output_norm": "model.final_layernorm",
    "output": "lm_head",
}

PHI = Architecture(
    name="phi",
    classes=("PhiForCausalLM",),
    title="phi-1, phi-1.5, phi-2",
    parse=parse,
    forward=forward,
    names=NAMES,
    hidden_act="gelu_new",
    epsilon="layer_norm_eps",
    byte_level="GPT2Tokenizer",
    biases=tuple(role for role in NAMES if role != "token_embedding"),
    gguf=Gguf(
        "phi2",
        keys=(
            "context_length embedding_length feed_forward_length block_count attention.head_count "
            "attention.head_count_kv attention.layer_norm_epsilon rope.dimension_count rope.freq_base? "
            "attention.key_length? attention.value_length?"
        ).split(),
        tokenizer_keys=("add_bos_token",),
        tied=False,
        pre={"gpt2": "phi-2"},
    ),
    mlx=Mlx(
        order="attn_q attn_k attn_v attn_output attn_norm ffn_up ffn_down".split(),
        keys=("partial_rotary_factor", "layer_norm_eps"),
        tied=False,
    ),
)
