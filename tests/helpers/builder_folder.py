"""Makes a folder like those of the model builder of ONNX Runtime GenAI (0.18) out of one that phiconv wrote.

The forms are those of its files: other names, matrices of floats transposed and multiplied by ``MatMul``,
codes in ``DequantizeLinear`` before it, one matrix at both ends behind a ``Reshape`` or a ``Transpose``,
tensors in the file of weights without gaps, and no config.json. (Constants are nodes there, and stay in the
graph here.)
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data, load_external_data_for_model

from phiconv import ir
from phiconv_formats.onnx import packing

RTN_NAMES = {"_Q4": "_Q4G32", "_Q8": "_Q8G32", "_scales": "_scale", "_zero_points": "_zp"}
TABLE = "model.embed_tokens.weight"


def rewrite(source, target, *, qdq=False, rtn_names=False):
    """Writes ``target``.

    Args:
        source: A folder by phiconv.
        target: Does not exist.
        qdq: Turn matrices of 4 bits into ``DequantizeLinear`` and ``MatMul``.
        rtn_names: Name tensors as the builder does with its other algorithms.
    """
    shutil.copytree(source, target)
    (target / "config.json").unlink()
    model = onnx.load(str(source / "model.onnx"), load_external_data=False)
    load_external_data_for_model(model, str(source))
    nodes = []
    for node in model.graph.node:
        nodes += rewritten(model.graph, node, qdq=qdq)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    tie(model.graph)
    layers = json.loads((source / "genai_config.json").read_text())["model"]["decoder"]["num_hidden_layers"]
    rename(model.graph, "model.norm.", f"model.layers.{layers}.final_norm_layernorm.")
    for old, new in RTN_NAMES.items() if rtn_names else ():
        rename(model.graph, f"weight{old}", f"weight{new}")
    (target / "model.onnx").unlink()
    (target / "model.onnx.data").unlink()
    convert_model_to_external_data(model, location="model.onnx.data", size_threshold=128)
    onnx.save(model, str(target / "model.onnx"))
    return target


def tensor(graph, name):
    return next((t for t in graph.initializer if t.name == name), None)


def rewritten(graph, node, *, qdq):
    """The nodes that the builder has for one of ours."""
    users = [n for n in graph.node if set(node.input[1:2]) & set(n.input)]
    if node.op_type == "FusedMatMul" and len(users) == 1 and tensor(graph, node.input[1]):
        weight = tensor(graph, node.input[1])
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), weight.name))
        return [helper.make_node("MatMul", node.input, node.output)]
    sizes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if qdq and node.op_type == "MatMulNBits" and sizes["bits"] == 4 and len(users) == 1:
        return scaled(graph, node, sizes)
    return [node]


def scaled(graph, node, sizes):
    """``DequantizeLinear``, ``MatMul`` and perhaps ``Add`` in place of a ``MatMulNBits``."""
    old = [tensor(graph, name) for name in node.input[1:4] if name]
    encoding = ir.onnx_affine(4, sizes["block_size"], ir.F32, symmetric=len(old) < 3)
    blocks = packing.unpack(encoding, sizes["K"], *(numpy_helper.to_array(t).tobytes() for t in old))
    parts = packing.pack_columns(blocks, sizes["K"])
    kind, base = TensorProto.INT4 if len(old) < 3 else TensorProto.UINT4, old[0].name.removesuffix("_Q4")
    names = [f"{base}_DQ_Q4", f"{base}_DQ_scales", f"{base}_DQ_zero_points"][: len(parts)]
    heights = (sizes["K"], len(parts[1]), len(parts[1]))
    for name, dtype, height, part in zip(
        names, (kind, TensorProto.FLOAT, kind), heights, parts, strict=False
    ):
        made = helper.make_tensor(name, dtype, (height, sizes["N"]), part.tobytes(), raw=True)
        graph.initializer.append(made)
    for each in old:
        graph.initializer.remove(each)
    bias = node.input[5] if len(node.input) > 5 else ""
    result = f"{base}_product" if bias else node.output[0]
    block = sizes["block_size"]
    return [
        helper.make_node("DequantizeLinear", names, [f"{base}_DQ"], axis=0, block_size=block),
        helper.make_node("MatMul", [node.input[0], f"{base}_DQ"], [result]),
        *([helper.make_node("Add", [result, bias], node.output)] if bias else []),
    ]


def tie(graph):
    """The one matrix at both ends under the name of the output matrix, and what the table is made by."""
    users = [n for n in graph.node if any(TABLE in name for name in n.input)]
    if len(users) < 2:
        return
    table, head = users
    matrix = tensor(graph, head.input[1])
    if table.op_type == "GatherBlockQuantized":
        graph.initializer.remove(tensor(graph, table.input[0]))
        shape = np.array([matrix.dims[0], np.prod(matrix.dims[1:])], np.int64)
        graph.initializer.append(numpy_helper.from_array(shape, "constants/table"))
        before = helper.make_node("Reshape", [matrix.name, "constants/table"], ["table"])
    else:
        matrix.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(matrix).T.copy(), matrix.name))
        head.CopyFrom(helper.make_node("MatMul", head.input, head.output))
        before = helper.make_node("Transpose", [matrix.name], ["table"], perm=[1, 0])
    table.input[0] = "table"
    graph.node.insert(0, before)
    rename(graph, TABLE, "lm_head.MatMul.weight")


def rename(graph, old, new):
    for each in graph.initializer:
        each.name = each.name.replace(old, new)
    for node in graph.node:
        node.input[:] = [name.replace(old, new) for name in node.input]
