"""The folder of a decoder in several graphs, for the pipelines of ONNX Runtime GenAI (0.18).

    embeddings.onnx               token ids to vectors, on the CPU
    context.onnx, iterator.onnx   all layers, for 64 tokens of a prompt and for one token of an answer
    lm_head.onnx                  vectors to logits, on the CPU
    model.onnx.data               the weights of all of them, each stored once

Where the layers do not fit into the processor's memory at once there are context_0.onnx, context_1.onnx and
so on.

The runtime pads the last part of a prompt with one token, and finds the length of the prompt by looking for
that token: so it must be none that a prompt has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from phiconv.tokenization.tokenizer import TokenType
from phiconv_formats.onnx.config import make_config
from phiconv_formats.onnx.static import StaticOps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir.model import Model
    from phiconv_formats.onnx.store import Store
    from phiconv_formats.onnx.targets import Target
    from phiconv_formats.shared.output import RuntimeSettings

__all__ = ["PIPELINE_NOTES", "PROMPT_LENGTH", "Stage", "make_pipeline_config", "make_stages"]

PROMPT_LENGTH = 64
"""Tokens of a prompt that are computed at once."""

_MOST_BYTES = 3 << 30
"""Of the layers' weights in one graph. The processor's compiler works with 3584 MiB, and activations take
some of them."""


class Stage(NamedTuple):
    """A graph of the pipeline.

    Attributes:
        name: What genai_config.json calls it.
        graph: Its file.
        inputs, outputs: Names of values.
        options: What else genai_config.json says of it.
        on_device: It runs on the target's processor, and not on the CPU.
    """

    name: str
    graph: bytes
    inputs: list[str]
    outputs: list[str]
    options: dict[str, Any]
    on_device: bool = False

    @property
    def file(self) -> str:
        """The name of the graph's file."""
        return f"{self.name}.onnx"


def make_stages(model: Model, store: Store, settings: RuntimeSettings) -> list[Stage]:
    """The graphs of a model, in the order in which they run.

    Args:
        model: The model.
        store: Its weights.
        settings: What the user wants.
    """
    hp = model.hyperparameters
    assert hp is not None  # noqa: S101 - output_tensors has looked
    assert model.forward is not None  # noqa: S101
    cuts = _cuts(store, hp.num_hidden_layers)
    walks = {}
    for name, length in (("context", PROMPT_LENGTH), ("iterator", 1)):
        ops = StaticOps(model, store, settings, length, cuts)
        model.forward(ops, hp)
        walks[name] = ops.pieces
    first, *_, last = walks["context"]
    stages = [Stage("embeddings", *first, {})]
    for name, pieces in walks.items():
        runs = {"run_on_token_gen": False} if name == "context" else {"run_on_prompt": False}
        for number, piece in enumerate(pieces[1:-1]):
            full_name = f"{name}_{number}" if cuts else name
            stages.append(Stage(full_name, *piece, runs, on_device=True))
    return [*stages, Stage("lm_head", *last, {"is_lm_head": True})]


def _cuts(store: Store, layers: int) -> list[int]:
    """The layers before which a new graph begins, so that all have about as many weights."""
    sizes = [store.nbytes(f"model.layers.{layer}.") for layer in range(layers)]
    count = min(-(-sum(sizes) // _MOST_BYTES) or 1, layers)
    return sorted({part * layers // count for part in range(1, count)})


def make_pipeline_config(model: Model, stages: Sequence[Stage], target: Target) -> dict[str, Any]:
    """The object of genai_config.json.

    Args:
        model: The model.
        stages: Its graphs.
        target: What those run on that do not run on the CPU.
    """
    config = make_config(model, "", target)
    section = config["model"]
    section |= {"type": "decoder-pipeline", "pad_token_id": _padding(model)}
    decoder = section["decoder"]
    for key in ("filename", "session_options"):
        del decoder[key]
    decoder["inputs"] = {
        "input_ids": "input_ids",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
        "past_sequence_length": "past_seq_len",
        "total_sequence_length": "total_seq_len",
    }
    decoder["sliding_window"] = {
        "window_size": PROMPT_LENGTH,
        "pad_value": 0,
        "alignment": "left",
        "slide_key_value_cache": False,
    }
    decoder["pipeline"] = [{stage.name: _stage_section(stage, target) for stage in stages}]
    return config


def _stage_section(stage: Stage, target: Target) -> dict[str, Any]:
    section: dict[str, Any] = {"filename": stage.file, "inputs": stage.inputs, "outputs": stage.outputs}
    section |= stage.options
    if stage.on_device:
        options = {"log_id": "onnxruntime-genai", "provider_options": [target.provider]}
        section["session_options"] = options
    return section


def _padding(model: Model) -> int:
    """A row of the embedding that is no token, the last one; else a token that no text gives."""
    hp, tokenizer = model.hyperparameters, model.tokenizer
    assert hp is not None  # noqa: S101 - output_tensors has looked
    tokens = tokenizer.tokens if tokenizer is not None else ()
    free = [i for i in range(hp.vocab_size) if i >= len(tokens) or tokens[i] is None]
    if free or tokenizer is None:
        return free[-1] if free else 0
    used = {*tokenizer.eos_ids, *tokenizer.special_ids.values()}
    rare = (TokenType.UNUSED, TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE)
    kinds = {kind: i for i, kind in enumerate(tokenizer.types) if i < hp.vocab_size and i not in used}
    return next((kinds[kind] for kind in rare if kind in kinds), hp.vocab_size - 1)


PIPELINE_NOTES = (
    "ONNX Runtime GenAI (0.18): a generator takes one prompt here, so begin a new one for every turn",
    "such folders were checked on Qualcomm's simulator of its processors, not on a device",
)
"""What the runtime is known to do wrong with any such folder, and what nobody has seen."""
