"""A mixture of experts in ONNX Runtime's operators, with the sparse mixer in standard ones.

``QMoE`` (quantized experts) takes the weights of the mixture as an input of its own. ``MoE`` (floats)
computes them itself, as a softmax over all scores; given the logarithms of the wanted weights that is, up to
their sum, the wanted weights.

ONNX's own operators have no mixture, and ``QMoE`` (ONNX Runtime 1.31) rounds activations to int8 wherever
experts have 8 bits. There every expert gets products of its own, with the tokens that chose it and no others;
for an expert that nobody chose these are products of no rows, which take no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv_formats.onnx.graph import CONTRIB
from phiconv_formats.onnx.integers import is_standard
from phiconv_formats.onnx.names import expert_name, matrix_name

if TYPE_CHECKING:
    from phiconv.forward.ops import MixtureOfExperts
    from phiconv_formats.onnx.graph import Graph
    from phiconv_formats.onnx.products import Products

__all__ = ["mixture"]

_LEAST = 1e-30
"""Stands for the weight 0, whose logarithm is not finite."""


def mixture(emit: Products, x: str, scores: str, layer: int, spec: MixtureOfExperts) -> str:
    """The weighted sum of the chosen experts.

    Args:
        emit: Where nodes go, and what is known of the weights.
        x: Shape (batch, length, width).
        scores: The router's, shape (batch, length, experts).
        layer: Of the weights.
        spec: How experts are chosen.

    Returns:
        Shape (batch, length, width).
    """
    g, path = emit.graph, f"/model/layers.{layer}/moe"
    flat = g.constant(np.array([-1, spec.count], np.int64))
    scores = g.value("Reshape", f"{path}/scores/Reshape", scores, flat)
    weights = sparse_mixer(g, f"{path}/mixer", scores, spec)
    names = [matrix_name(name, layer) for name in ("experts_gate_up", "experts_down")]
    shared: dict[str, Any] = {
        "k": spec.used,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,  # gate and up rows by turns
        "activation_alpha": 1.0,  # with these two it is silu(gate) * up
        "activation_beta": 0.0,
        "normalize_routing_weights": 0,
    }
    if _apart(emit, names):
        return _one_by_one(emit, path, x, weights, layer, spec)
    if isinstance(emit.store[names[0]].encoding, ir.FloatEncoding):
        return _floats(emit, path, x, weights, names, shared)
    return _quantized(emit, path, (x, scores, weights), names, shared)


def sparse_mixer(g: Graph, path: str, scores: str, spec: MixtureOfExperts) -> str:
    """The weight of every expert for every token, 0 for most (see `MixtureOfExperts`).

    Args:
        g: The graph.
        path: Of the nodes.
        scores: Shape (tokens, experts).
        spec: How many to choose, and which are near.

    Returns:
        Shape (tokens, experts).
    """
    nothing = g.constant(np.array(-np.inf, np.float32))
    one_hot = g.constant(np.array([0, 1], np.float32))
    count, last = g.constant(np.array(spec.count, np.int64)), g.constant(np.array([-1], np.int64))
    limit = g.constant(np.array(2 * spec.jitter, np.float32))
    zero = g.constant(np.array(0, np.float32))
    size = g.value("Abs", f"{path}/Abs", scores)
    left, result = scores, ""
    for i in range(spec.used):
        at = f"{path}/{i}"
        best = g.value("ReduceMax", f"{at}/best", left, last, keepdims=1)
        distance = g.value("Sub", f"{at}/Sub", best, scores)
        scale = g.value("Max", f"{at}/Max", size, best)
        ratio = g.value("Div", f"{at}/Div", distance, scale)
        far = g.value("Greater", f"{at}/far", ratio, limit)
        near = g.value("Where", f"{at}/near", far, nothing, left)
        softmax = g.value("Softmax", f"{at}/Softmax", near, axis=-1)
        weight = g.value("ReduceMax", f"{at}/weight", softmax, last, keepdims=1)  # the best one's
        index = g.value("ArgMax", f"{at}/ArgMax", left, axis=-1, keepdims=0)
        chosen = g.value("OneHot", f"{at}/OneHot", index, count, one_hot, axis=-1)
        part = g.value("Mul", f"{at}/Mul", chosen, weight)
        result = g.value("Add", f"{at}/Add", result, part) if result else part
        if i < spec.used - 1:
            taken = g.value("Greater", f"{at}/taken", chosen, zero)
            left = g.value("Where", f"{at}/left", taken, nothing, left)
    return result


def _apart(emit: Products, names: list[str]) -> bool:
    """Whether no operator computes this mixture as it is wanted."""
    encodings = [emit.store[name].encoding for name in names]
    if any(is_standard(encoding) for encoding in encodings):
        return True
    eight = any(isinstance(e, ir.BlockEncoding) and e.bits == 8 for e in encodings)
    return eight and not emit.accuracy


def _one_by_one(emit: Products, path: str, x: str, weights: str, layer: int, spec: MixtureOfExperts) -> str:
    """Each expert's tokens are gathered, computed with, and added to their places."""
    g = emit.graph
    names = ("experts_gate_up", "experts_down")
    width, inner = emit.store[matrix_name(names[1], layer)].shape[1:]
    tokens = g.value("Reshape", f"{path}/tokens/Reshape", x, g.constant(np.array([-1, width], np.int64)))
    result = g.value("ConstantOfShape", f"{path}/zeros", g.value("Shape", f"{path}/tokens/Shape", tokens))
    by_turns = g.constant(np.array([0, inner, 2], np.int64))
    last = g.constant(np.array([-1], np.int64))
    for expert in range(spec.count):
        at = f"{path}/{expert}"
        for name in names:
            emit.store.share(matrix_name(name, layer), expert_name(name, layer, expert), expert)
        gate_up, down = (expert_name(name, layer, expert) for name in names)
        number = g.constant(np.array(expert, np.int64))
        weight = g.value("Gather", f"{at}/weight/Gather", weights, number, axis=1)
        where = g.value("NonZero", f"{at}/NonZero", weight)
        where = g.value("Transpose", f"{at}/Transpose", where, perm=[1, 0])
        chosen = g.value("GatherND", f"{at}/tokens/GatherND", tokens, where)
        y = emit.product(chosen, gate_up, f"{at}/gate_up_proj")
        y = g.value("Reshape", f"{at}/by_turns/Reshape", y, by_turns)
        gate, up = (
            g.value("Gather", f"{at}/{i}/Gather", y, g.constant(np.array(i, np.int64)), axis=2)
            for i in (0, 1)
        )
        active = emit.activate(gate, spec.activation)
        y = emit.product(g.value("Mul", f"{at}/gated/Mul", active, up), down, f"{at}/down_proj")
        factor = g.value("GatherND", f"{at}/weight/GatherND", weight, where)
        factor = g.value("Unsqueeze", f"{at}/weight/Unsqueeze", factor, last)
        y = g.value("Mul", f"{at}/Mul", y, factor)
        result = g.value("ScatterND", f"{at}/ScatterND", result, where, y, reduction="add")
    return g.value("Reshape", f"{path}/Reshape", result, g.value("Shape", f"{path}/Shape", x))


def _quantized(
    emit: Products, path: str, values: tuple[str, str, str], names: list[str], shared: dict[str, Any]
) -> str:
    x, scores, weights = values
    first, second = (emit.store.block_encoding(name) for name in names)
    bits = {"expert_weight_bits": first.bits}
    if first.bits != second.bits:
        bits |= {"fc1_expert_weight_bits": first.bits, "fc2_expert_weight_bits": second.bits}
    matrices = []
    for name in names:
        matrices += [
            emit.store.codes(emit.graph, name, rows=True),
            emit.store.scales(emit.graph, name),
            "",
        ]
    zero_points = [emit.store.zero_points(emit.graph, name) for name in names]
    inputs = [x, scores, *matrices, "", "", "", *zero_points, "", weights]
    return emit.graph.value(
        "QMoE",
        f"{path}/QMoE",
        *inputs,
        domain=CONTRIB,
        block_size=first.block_size,
        **bits,
        **emit.accuracy,
        **shared,
    )


def _floats(emit: Products, path: str, x: str, weights: str, names: list[str], shared: dict[str, Any]) -> str:
    g = emit.graph
    width = emit.store[names[1]].shape[1]
    least = g.constant(np.array(_LEAST, np.float32))
    logarithms = g.value("Log", f"{path}/Log", g.value("Max", f"{path}/Max", weights, least))
    tokens = g.value("Reshape", f"{path}/tokens/Reshape", x, g.constant(np.array([-1, width], np.int64)))
    gate_up, down = (emit.float_weight(name) for name in names)
    inputs = (tokens, logarithms, gate_up, "", down)
    mixed = g.value("MoE", f"{path}/MoE", *inputs, domain=CONTRIB, **shared)
    last = g.constant(np.array([-1], np.int64))
    total = g.value("ReduceSum", f"{path}/total", weights, last, keepdims=1)
    scaled = g.value("Mul", f"{path}/Mul", mixed, total)
    shape = g.value("Shape", f"{path}/Shape", x)
    return g.value("Reshape", f"{path}/Reshape", scaled, shape)
