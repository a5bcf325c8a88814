"""From an input of an operation back to the constants that it is made of.

A weight comes out of a chain that OpenVINO computes once, when it loads the model:

    codes -> Convert -> [Subtract zero point] -> Multiply scale -> [Reshape] -> [Convert]
    floats -> [Convert]

Codes are integers, or floats of 4 or 8 bits; what is no such chain is no weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from phiconv import ir
from phiconv.errors import UnsupportedModelError
from phiconv_formats.openvino.constants import Constant, check_overlaps, float_tensor, numbers, read_constant
from phiconv_formats.openvino.packing import encoding_of, unpack
from phiconv_formats.shared.rows import AssembledRows

if TYPE_CHECKING:
    from phiconv_formats.openvino.ir_graph import IrGraph, Layer
    from phiconv_formats.shared.files import InputFile

__all__ = ["Chain", "Chains"]

_STEPS = 8
"""More layers than any chain has, one after the other."""


@dataclass(slots=True)
class Chain:
    """The constants of a chain.

    Attributes:
        layer: Where it begins.
        stored: The floats, or the codes.
        zero_points, scales: Where codes have them.
        shape: What a Reshape at the end makes of it: its second input.
    """

    layer: Layer
    stored: Constant
    zero_points: Constant | None = None
    scales: Constant | None = None
    shape: Layer | None = None


class Chains:
    """Follows the chains of an IR; all constants are seen to lie in the .bin.

    Args:
        graph: The layers.
        file: The .bin.
    """

    def __init__(self, graph: IrGraph, file: InputFile) -> None:
        self._graph = graph
        self._constants = {
            number: read_constant(layer, file, graph.path)
            for number, layer in graph.layers.items()
            if layer.kind == "Const"
        }
        check_overlaps(self._constants.values(), graph.path)

    def follow(self, layer: Layer, steps: int = _STEPS) -> Chain | None:
        """The chain that ends with a layer; None if there is none."""
        if layer.kind == "Const":
            return Chain(layer, self._constants[layer.number])
        inputs = self._graph.inputs(layer)
        chain = self.follow(inputs[0], steps - 1) if inputs and steps else None
        if chain is None or layer.kind == "Convert":
            return chain
        if layer.kind == "Reshape" and len(inputs) == 2 and chain.shape is None:
            chain.shape = inputs[1]
            return chain
        if layer.kind in ("Subtract", "Multiply") and len(inputs) == 2 and chain.shape is None:
            return self._with(chain, layer.kind, self.follow(inputs[1], steps - 1))
        return None

    @staticmethod
    def _with(chain: Chain, kind: str, other: Chain | None) -> Chain | None:
        """Codes with zero points, or with scales: once each, in this order."""
        if other is None or other.scales is not None or other.shape is not None or chain.scales is not None:
            return None
        if kind == "Multiply":
            chain.scales = other.stored
        elif chain.zero_points is None:
            chain.zero_points = other.stored
        else:
            return None
        return chain

    def tensor(self, chain: Chain) -> ir.Tensor:
        """The weight that a chain makes.

        Raises:
            UnsupportedModelError: It has constants that phiconv cannot decode, or that do not fit together.
        """
        stored = chain.stored
        if chain.scales is None and chain.zero_points is None and chain.shape is None:
            shape = stored.shape
            if len(shape) > 1 and prod(shape[:-1]) == 1:  # one vector for all tokens
                shape = shape[-1:]
            if prod(shape) and (found := float_tensor(stored, shape)) is not None:
                return found
        elif chain.scales is not None and (found := self._matrix(chain, chain.scales)) is not None:
            return found
        constants = (c for c in (stored, chain.scales, chain.zero_points) if c is not None)
        shown = ", ".join(f"{c.type} {list(c.shape)}" for c in constants)
        raise UnsupportedModelError(
            f"is made of constants in a way that phiconv does not read: {shown}",
            path=self._graph.path,
            at=f"constant {stored.name}",
            hint="convert the original checkpoint",
        )

    def _matrix(self, chain: Chain, scales: Constant) -> ir.Tensor | None:
        """A quantized matrix, or a stack of them; None if the constants do not fit together."""
        codes, zeros = chain.stored, chain.zero_points
        if len(codes.shape) < 2 or not prod(codes.shape) or scales.shape != (*codes.shape[:-1], 1):
            return None
        if zeros is not None and (zeros.type, zeros.shape) != (codes.type, scales.shape):
            return None
        encoding = encoding_of(codes.type, codes.shape[-1], scales.type, has_zero_point=zeros is not None)
        shape = codes.shape
        if chain.shape is not None:
            shape = (*shape[:-2], shape[-2] * shape[-1])
            target = self._constants.get(chain.shape.number)
            if target is None or numbers(target) != list(shape):
                return None
        if encoding is None or len(shape) < 2:
            return None
        rows = prod(shape[:-1])
        parts = (codes, scales) if zeros is None else (codes, scales, zeros)
        source = AssembledRows(
            encoding, tuple(part.matrix(rows) for part in parts), partial(unpack, encoding)
        )
        return ir.Tensor.of(source, shape)
