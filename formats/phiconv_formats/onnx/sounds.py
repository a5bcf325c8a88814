"""The nodes of an encoder of sounds for ONNX Runtime GenAI: a `SoundOps` whose values are names.

GenAI hands over the spectrograms of all sounds of a prompt at once: ``audio_embeds`` (sounds, frames, bands),
with zeros behind those that are shorter, ``audio_attention_mask`` (sounds, frames), which frames are there,
``audio_sizes`` (sounds), how many features each sound becomes, and ``audio_projection_mode`` (1): 2 where
there are only sounds, 3 where there are pictures, too. The graph gives the features of all sounds one after
the other, and those of each are what they would be if it were alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from phiconv_formats.onnx.counting import Counting
from phiconv_formats.onnx.encoder import EncoderNodes
from phiconv_formats.onnx.names import norm_name

if TYPE_CHECKING:
    from phiconv.forward.encoder_ops import EncoderAttention
    from phiconv.forward.ops import Activation
    from phiconv.ir.model import Role
    from phiconv.ir.senses import Hearing, SoundEncoder
    from phiconv_formats.onnx.store import Store
    from phiconv_formats.onnx.targets import Target

__all__ = ["sound_graph"]

_ALONE = 2
"""The mode of a prompt with sounds and without pictures."""


def sound_graph(encoder: SoundEncoder, store: Store, target: Target, accuracy_level: int | None) -> bytes:
    """The file of the graph from spectrograms to features.

    Args:
        encoder: What it computes.
        store: The weights.
        target: The processor that it is for.
        accuracy_level: Of products with quantized matrices; None for the target's usual one.
    """
    parameters = encoder.parameters
    ops = OnnxSoundOps(parameters, store, target, accuracy_level)
    x = encoder.tower(ops, parameters)
    features = ops.by_mode(*(encoder.project(ops, x, parameters, way) for way in ("speech", "vision")))
    return ops.finish(features, "audio_features", ("num_audio_tokens", parameters.features))


class OnnxSoundOps(EncoderNodes):
    """Emits nodes (see `phiconv.forward.sound_ops.SoundOps`).

    A value has shape (sounds, channels, frames, bands), then (sounds, frames, width), between `cut` and
    `uncut` (pieces of all sounds, frames, width), at last (frames of all sounds, width).
    """

    def __init__(self, parameters: Hearing, store: Store, target: Target, accuracy_level: int | None) -> None:
        super().__init__(store, target, accuracy_level, "/audio")
        self._parameters = parameters
        self._counting = Counting(self.graph, "/audio/lengths")
        mask = self.graph.input("audio_attention_mask", TensorProto.BOOL, ("num_audios", "num_frames"))
        self._sizes = self.graph.input("audio_sizes", TensorProto.INT64, ("num_audios",))
        self._lengths = self._counting.total(self._counting.to_int(mask), 1)
        self._whole = self._keys = ""
        self._biases: dict[Role, str] = {}

    def by_mode(self, alone: str, beside_picture: str) -> str:
        """One of two values; both are computed, which costs little beside what comes before them."""
        mode = self.graph.input("audio_projection_mode", TensorProto.INT64, (1,))
        is_alone = self._counting.node("Equal", mode, self._counting.number(_ALONE))
        return self._add_node("Where", is_alone, alone, beside_picture)

    def frames(self, mean: Role, inverse_std: Role, /) -> str:
        """See `SoundOps.frames`."""
        shape = ("num_audios", "num_frames", self._parameters.mels)
        x = self._as_float(self.graph.input("audio_embeds", TensorProto.FLOAT, shape))
        x = self._add_node("Sub", x, self._floats(mean))
        x = self._add_node("Mul", x, self._floats(inverse_std))
        return self._add_node("Unsqueeze", x, *self._integers([1]))

    def convolve(self, x: str, role: Role, /) -> str:
        """See `SoundOps.convolve`."""
        return self._halving(x, role, 1)

    def convolve_each(self, x: str, role: Role, /) -> str:
        """See `SoundOps.convolve_each`."""
        return self._halving(x, role, self._parameters.channels)

    def _halving(self, x: str, role: Role, groups: int) -> str:
        """A convolution of every second place, with zeros around each sound as if it were alone."""
        x = self._blank(x, 2, (1, 3))
        self._lengths = self._counting.div(self._counting.add(self._lengths, 1), 2)
        return self._convolved(x, role, (3, 3), pads=(1, 1, 1, 1), strides=(2, 2), group=groups)

    def _convolved(
        self, x: str, role: Role, kernel: tuple[int, ...], **attributes: int | tuple[int, ...]
    ) -> str:
        weights = self._reshaped(self._floats(role), (self._parameters.channels, -1, *kernel))
        return self._add_node("Conv", x, weights, self._floats(role._replace(part="bias")), **attributes)

    def _blank(self, x: str, axis: int, around: tuple[int, ...]) -> str:
        """Zeros in place of frames behind the end of a sound.

        Args:
            x: Sounds first, frames along the axis.
            axis: That.
            around: The other dimensions.
        """
        c = self._counting
        there = c.node("Less", c.numbers(c.size(x, axis)), c.column(self._lengths))
        kept = self._add_node("Cast", there, to=self.float_type)
        return self._add_node("Mul", x, self._add_node("Unsqueeze", kept, *self._integers([*around])))

    def mix(self, x: str, role: Role, /) -> str:
        """See `SoundOps.mix`."""
        return self._convolved(x, role, (1, 1))

    def flatten(self, x: str, /) -> str:
        """See `SoundOps.flatten`."""
        return self._reshaped(self._add_node("Transpose", x, perm=(0, 2, 1, 3)), (0, 0, -1))

    def cut(self, x: str, longest: int, /) -> str:
        """See `SoundOps.cut`. Keys behind the end of a sound do not count, unless it is cut."""
        c = self._counting
        x = self._blank(x, 1, (2,))
        frames, most = c.size(x, 1), c.number(longest)
        size = c.node("Min", frames, most)
        self._whole = c.mul(c.node("Div", c.add(c.node("Add", frames, size), -1), size), size)
        missing = c.node("Unsqueeze", c.node("Sub", self._whole, frames), c.vector([0]))
        ends = c.node("Concat", c.vector([0, 0, 0, 0]), missing, c.vector([0]), axis=0)
        counted = c.node("Where", c.node("Greater", self._lengths, most), self._whole, self._lengths)
        keys = c.node("Less", c.numbers(self._whole), c.column(counted))
        pieces = c.node("Concat", c.vector([-1]), c.node("Unsqueeze", size, c.vector([0])), axis=0)
        self._keys = c.node("Cast", c.node("Reshape", keys, pieces), to=TensorProto.INT32)
        shape = c.node("Concat", pieces, c.vector([self._parameters.hidden_size]), axis=0)
        return self._add_node("Reshape", self._add_node("Pad", x, ends), shape)

    def uncut(self, x: str, /) -> str:
        """See `SoundOps.uncut`."""
        c = self._counting
        there = c.where_true(c.node("Less", c.numbers(self._whole), c.column(self._sizes)))
        flat = self._reshaped(x, (-1, self._parameters.hidden_size))
        return self._add_node("Gather", flat, there, axis=0)

    def half(self, x: str, /) -> str:
        """See `SoundOps.half`."""
        number = np.array(0.5, helper.tensor_dtype_to_np_dtype(self.float_type))
        return self._add_node("Mul", x, self.graph.constant(number))

    def gate(self, x: str, kind: Activation, /) -> str:
        """See `SoundOps.gate`."""
        first, second = self._halves(x)
        return self._add_node("Mul", first, self.activate(second, kind))

    def gate_shifted(self, x: str, kind: Activation, first: Role, second: Role, /) -> str:
        """See `SoundOps.gate_shifted`."""
        a, b = (
            self.add(half, self._floats(role))
            for half, role in zip(self._halves(x), (first, second), strict=True)
        )
        return self._add_node("Mul", a, self.activate(b, kind))

    def _halves(self, x: str) -> tuple[str, ...]:
        self._count += 1
        return self.graph.node("Split", f"/audio/Split_{self._count}", x, outputs=2, axis=-1, num_outputs=2)

    def attention(self, x: str, layer: int, spec: EncoderAttention, bias: Role, distance: int, /) -> str:
        """See `SoundOps.attention`."""
        if bias not in self._biases:
            self._biases[bias] = self._by_distance(x, bias, distance)
        return self._attention(x, layer, spec, self._keys, self._biases[bias])

    def _by_distance(self, x: str, bias: Role, distance: int) -> str:
        """What every query's score of every key gets: (1, heads, frames, frames)."""
        c = self._counting
        numbers = c.numbers(c.size(x, 1))
        away = c.node("Sub", numbers, c.column(numbers))
        near = c.node("Clip", away, c.number(-distance), c.number(distance - 1))
        found = self._add_node("Gather", self._floats(bias), c.add(near, distance), axis=0)
        turned = self._add_node("Transpose", found, perm=(2, 0, 1))
        return self._add_node("Unsqueeze", turned, *self._integers([0]))

    def causal(self, x: str, role: Role, /) -> str:
        """See `SoundOps.causal`."""
        x = self._add_node("Transpose", x, perm=(0, 2, 1))
        width, size = self._store[norm_name(role)].shape
        weights = self._reshaped(self._floats(role), (width, 1, size))
        bias = self._floats(role._replace(part="bias"))
        x = self._add_node("Conv", x, weights, bias, pads=(size - 1, 0), group=width)
        return self._add_node("Transpose", x, perm=(0, 2, 1))
