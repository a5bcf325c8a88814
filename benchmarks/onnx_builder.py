"""The model builder of ONNX Runtime GenAI: its options for our recipes, and whether its weights are ours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]

_ASYMMETRIC = "is_symmetric=false"

RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "int4": ("int4", ()),
    "int4-asym": ("int4", (_ASYMMETRIC,)),
    "int4-rtn": ("int4", ("algo_config=rtn",)),
    "int4-rtn-asym": ("int4", ("algo_config=rtn", _ASYMMETRIC)),
    "int4-k_quant": ("int4", ("algo_config=k_quant",)),
    "int4-k_quant_mixed": ("int4", ("algo_config=k_quant_mixed",)),
    "int8": ("int8", ()),
    "int8-asym": ("int8", (_ASYMMETRIC,)),
    "int8-rtn": ("int8", ("algo_config=rtn",)),
    "int8-rtn-asym": ("int8", ("algo_config=rtn", _ASYMMETRIC)),
    "int8-k_quant": ("int8", ("algo_config=k_quant",)),
    "f32": ("fp32", ()),
    "f16": ("fp16", ()),
}
"""Of each recipe the builder's precision and extra options; ``-gN`` behind it is a block size."""


def builder_command(
    python: str, model: Path, folder: Path, recipe: str, target: str = "cpu"
) -> list[str | Path]:
    """The command that makes the builder convert.

    Args:
        python: An interpreter that has onnxruntime-genai, torch and transformers.
        model: The model's folder.
        folder: For the result.
        recipe: A key of `RECIPES`, perhaps with a block size.
        target: ``cpu``, ``cuda``, ``dml`` or ``webgpu``.
    """
    name, _, size = recipe.partition("-g")
    precision, options = RECIPES[name]
    if size:
        options = (*options, f"block_size={size}")
    module = [python, "-P", "-m", "onnxruntime_genai.models.builder"]
    paths = ["-i", model, "-o", folder, "-c", folder.with_name(f"{folder.name}.cache")]
    extra = ["--extra_options", *options] if options else []
    return [*module, *paths, "-p", precision, "-e", target, *extra]


# ---------------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of either file, of bytes that are read when they are compared."""

    data_type: int
    shape: tuple[int, ...]
    data: Bytes


@dataclass(slots=True)
class Comparison:
    """What the two files have.

    Attributes:
        equal: How many tensors are the same, byte for byte.
        different: Of each other one what differs.
        missing: Tensors of the builder's that phiconv has not.
        added: Tensors of phiconv's that the builder has not.
    """

    equal: int = 0
    different: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{name}: {what}" for name, what in self.different.items()]
        parts += [f"{name}: missing" for name in self.missing] + [f"{name}: added" for name in self.added]
        shown = "; ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
        return f"DIFFER: {shown}" if parts else f"{self.equal} tensors, equal byte for byte"


def compare(ours: Path, theirs: Path) -> Comparison:
    """Compares the weights of phiconv's folder and the builder's: all but the tables of rotary embeddings.

    Those come from another library's cosine, and differ in the last bit here and there.
    """
    a, b = dict(_weights(ours)), dict(_weights(theirs))
    for weights in (a, b):
        _join_projections(weights)
    if not any(name.startswith("lm_head.weight") for name in a):  # one matrix for both ends
        for name in [name for name in a if name.startswith("model.embed_tokens.weight")]:
            a[name.replace("model.embed_tokens", "lm_head")] = a.pop(name)
    result = Comparison(missing=sorted(b.keys() - a.keys()), added=sorted(a.keys() - b.keys()))
    for name in sorted(a.keys() & b.keys()):
        if what := _difference(a[name], b[name]):
            result.different[name] = what
        else:
            result.equal += 1
    return result


def _difference(a: Weight, b: Weight) -> str:
    if (a.data_type, a.data.size) != (b.data_type, b.data.size):
        return f"{a.shape} of type {a.data_type} against {b.shape} of type {b.data_type}"
    different = int(np.count_nonzero(a.data != b.data))
    return f"{different} of {a.data.size} bytes" if different else ""


def _weights(folder: Path) -> Iterator[tuple[str, Weight]]:
    """The tensors of more than one element, under names that both programs' files have in common."""
    (path,) = folder.glob("*.onnx")
    model = onnx.load(str(path), load_external_data=False)
    transposed = model.producer_name != "phiconv"  # floats alone
    layers = 1 + max(int(n) for i in model.graph.initializer for n in re.findall(r"layers\.(\d+)", i.name))
    for tensor in model.graph.initializer:
        name = _common_name(tensor.name, layers)
        weight = _read(tensor, folder)
        if len(weight.shape) < 1 or "_cache" in name or name.startswith("constants/"):
            continue
        if name.endswith("weight") and "norm" not in name and "embed" not in name and transposed:
            weight = _transposed(weight)
        yield name, weight


def _common_name(name: str, layers: int) -> str:
    """``<path>.weight codes``, ``... scales`` or ``... zero points`` for quantized matrices."""
    for pattern, replacement in (
        (r"_rows$", ""),  # the same bytes in another shape
        (r"_Q\d(G\d+)?$", " codes"),
        (r"_scales?$", " scales"),
        (r"_(zp|zero_points)$", " zero points"),
        (r"\.(MatMul|Add)\.", "."),
        (r"\.fc1\.", ".up_proj."),
        (r"\.fc2\.", ".down_proj."),
        (rf"layers\.({layers}|{layers - 1})\.final_norm_layernorm", "norm"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def _read(tensor: onnx.TensorProto, folder: Path) -> Weight:
    shape = tuple(tensor.dims)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        data = np.frombuffer(onnx.numpy_helper.to_array(tensor).tobytes(), np.uint8)
        return Weight(tensor.data_type, shape, data)
    place = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(place.get("offset", 0)), int(place["length"])
    data = np.memmap(folder / place["location"], np.uint8, "r", offset, (length,))
    return Weight(tensor.data_type, shape, data)


def _transposed(weight: Weight) -> Weight:
    """A matrix of floats with a row for every output, as checkpoints have it."""
    if len(weight.shape) != 2:
        return weight
    columns, rows = weight.shape
    values = weight.data.reshape(columns, rows, -1).transpose(1, 0, 2)
    return Weight(weight.data_type, (rows, columns), np.ascontiguousarray(values).reshape(-1))


def _join_projections(weights: dict[str, Weight]) -> None:
    """Queries, keys and values in one: each program has them apart where the attention cannot rotate."""
    for name in [name for name in weights if ".attn.q_proj." in name]:
        parts = [weights.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        joined = Weight(parts[0].data_type, shape, np.concatenate([part.data for part in parts]))
        weights[name.replace(".q_proj.", ".qkv_proj.")] = joined
