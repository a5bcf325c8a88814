"""An ONNX graph under construction: nodes, small constants, and weights that lie in a file beside it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from phiconv import ir
from phiconv._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CONTRIB", "DATA_TYPES", "ZEROS", "Graph"]

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

ZEROS = "constants/zeros/"
"""How names of vectors of zeros begin."""

DATA_TYPES = {ir.F32: TensorProto.FLOAT, ir.F16: TensorProto.FLOAT16, ir.BF16: TensorProto.BFLOAT16}
"""What ONNX calls the float types."""


class Graph:
    """Collects the parts of a model; `finish` puts them together.

    A node's outputs are named after the node, ``<name>/output_<i>``, as PyTorch's exporter and the model
    builder of ONNX Runtime GenAI name them. So a name has to be given only once.

    Args:
        opset: The version of ONNX's operators.
        ir_version: The version of the file format.
    """

    def __init__(self, opset: int = 23, ir_version: int = 11) -> None:
        self._opset = opset
        self._ir_version = ir_version
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: dict[str, onnx.ValueInfoProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def node(
        self,
        operator: str,
        name: str,
        *inputs: str,
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        **attributes: Any,
    ) -> tuple[str, ...]:
        """Adds a node.

        Args:
            operator: Its type.
            name: Its own name, unique in the graph.
            inputs: Names of values; an optional one that is not given is "".
            outputs: How many there are, or their names.
            domain: Of the operator; "" for ONNX's own.
            attributes: As the operator has them.

        Returns:
            The names of its outputs.
        """
        if isinstance(outputs, int):
            outputs = [f"{name}/output_{i}" for i in range(outputs)]
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        made = helper.make_node(operator, inputs, outputs, name, domain=domain, **attributes)
        self._nodes.append(made)
        return tuple(outputs)

    def value(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, and returns that."""
        return self.node(operator, name, *inputs, **attributes)[0]

    def constant(self, array: NDArray[np.generic]) -> str:
        """A small constant, once however often it is asked for."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"constants/{len(self._constants)}"
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            self._initializers[name] = helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
        return self._constants[key]

    def zeros(self, data_type: int, count: int) -> str:
        """A vector of zeros of any of ONNX's types, once however often it is asked for."""
        name = f"{ZEROS}{TensorProto.DataType.Name(data_type)}/{count}"
        if name not in self._initializers:
            half = data_type in {TensorProto.INT4, TensorProto.UINT4}
            data = bytes(
                -(-count // 2) if half else count * helper.tensor_dtype_to_np_dtype(data_type).itemsize
            )
            self._initializers[name] = helper.make_tensor(name, data_type, [count], data, raw=True)
        return name

    def weight(
        self,
        name: str,
        data_type: int,
        shape: Sequence[int],
        place: tuple[str, int, int],
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """A tensor whose bytes are in another file, once however often it is asked for.

        Args:
            name: Its name.
            data_type: One of ONNX's.
            shape: Outermost dimension first.
            place: File name, offset and number of bytes.
            notes: What its ``metadata_props`` say.
        """
        if name not in self._initializers:
            tensor = TensorProto(name=name, data_type=data_type, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in zip(("location", "offset", "length"), place, strict=True):
                tensor.external_data.add(key=key, value=str(value))
            for key, note in notes.items():
                tensor.metadata_props.add(key=key, value=note)
            self._initializers[name] = tensor
        return name

    def input(self, name: str, data_type: int, shape: Sequence[int | str]) -> str:
        """Declares an input of the model, once however often it is asked for."""
        self._inputs[name] = helper.make_tensor_value_info(name, data_type, shape)
        return name

    def output(self, name: str, data_type: int, shape: Sequence[int | str]) -> str:
        """Declares an output of the model; a node must have one of this name."""
        self._outputs[name] = helper.make_tensor_value_info(name, data_type, shape)
        return name

    def rename(self, value: str, name: str) -> str:
        """Gives what a node computes another name."""
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [name if each == value else each for each in names]
        return name

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs, in their order."""
        return [value.name for value in _ordered(self._inputs)]

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs, in their order."""
        return [value.name for value in _ordered(self._outputs)]

    def branch(
        self, name: str, values: Sequence[str], data_type: int, rows: Sequence[str] = ()
    ) -> onnx.GraphProto:
        """A branch of an ``If``, which yields values of the graph around it.

        Args:
            name: Its name.
            values: What it yields.
            data_type: Of all of them.
            rows: Values of one element each: the first row that is yielded, and the one after the last.
        """
        operator = "Slice" if rows else "Identity"
        nodes = [helper.make_node(operator, [v, *rows], [f"{name}/{v}"], f"/{name}/{v}") for v in values]
        outputs = [helper.make_tensor_value_info(f"{name}/{v}", data_type, None) for v in values]
        return helper.make_graph(nodes, name, [], outputs)

    def finish(self) -> bytes:
        """The model's file; inputs and outputs in the order in which GenAI lists them."""
        self._drop_unused_outputs()
        graph = helper.make_graph(
            self._nodes,
            "main_graph",
            _ordered(self._inputs),
            _ordered(self._outputs),
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=self._ir_version,
            producer_name="phiconv",
            producer_version=__version__,
        )
        # Deterministic for one version of protobuf: there are no maps in it.
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _drop_unused_outputs(self) -> None:
        """Optional outputs that nothing reads need not be computed."""
        read = {*self._outputs, *(name for node in self._nodes for name in _read_by(node))}
        for node in self._nodes:
            kept = [name if name in read else "" for name in node.output]
            while kept and not kept[-1]:
                kept.pop()
            node.output[:] = kept


def _read_by(node: onnx.NodeProto) -> set[str]:
    """What a node reads, its branches included."""
    inner = (each for attribute in node.attribute for each in attribute.g.node)
    return {*node.input, *(name for each in inner for name in each.input)}


def _ordered(values: dict[str, onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    """Token ids and mask or logits first, then all keys, then all values."""
    return sorted(values.values(), key=lambda v: 2 if v.name.endswith("value") else v.name.endswith("key"))
