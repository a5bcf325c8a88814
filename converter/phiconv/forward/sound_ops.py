"""What an encoder of sounds computes: the operations of a Conformer, beside those that pictures have.

Values have one vector per frame. How many frames there are, and the spectrogram itself, are the interpreter's
business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from phiconv.forward.encoder_ops import EncoderCall, EncoderRecorder
from phiconv.ir.roles import Role

if TYPE_CHECKING:
    from phiconv.forward.encoder_ops import EncoderAttention
    from phiconv.forward.ops import Activation
    from phiconv.ir.senses import SoundEncoder

__all__ = ["SoundOps", "hearing", "record_sound"]

V = TypeVar("V")


def hearing(name: str, layer: int | None = None, part: str = "weight") -> Role:
    """A role in an encoder of sounds."""
    return Role(f"audio.{name}", layer, part)


class SoundOps(Protocol[V]):
    """The operations; ``V`` is what stands for a value between two of them."""

    def frames(self, mean: Role, inverse_std: Role, /) -> V:
        """The spectrogram as a picture of one channel: ``(x - mean) * inverse_std``."""

    def convolve(self, x: V, role: Role, /) -> V:
        """3 x 3 pixels of all channels, with padding; every second pixel of every second row stays."""

    def convolve_each(self, x: V, role: Role, /) -> V:
        """The same of each channel by itself."""

    def mix(self, x: V, role: Role, /) -> V:
        """``weight @ channels + bias`` of each pixel."""

    def flatten(self, x: V, /) -> V:
        """A vector for each row of pixels: channel by channel."""

    def cut(self, x: V, longest: int, /) -> V:
        """Pieces of so many frames, which do not see each other, the last one filled up with zeros.

        A sound that is not longer stays as it is.
        """

    def uncut(self, x: V, /) -> V:
        """The pieces as one again, without what was filled up."""

    def linear(self, x: V, role: Role, /) -> V:
        """``x @ weight.T + bias``."""

    def layer_norm(self, x: V, role: Role, epsilon: float, /) -> V:
        """``(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias``."""

    def add(self, a: V, b: V, /) -> V:
        """The sum of two values."""

    def half(self, x: V, /) -> V:
        """``x / 2``."""

    def activate(self, x: V, kind: Activation, /) -> V:
        """A function of each number."""

    def gate(self, x: V, kind: Activation, /) -> V:
        """The first half of each vector times the activation of the second half."""

    def gate_shifted(self, x: V, kind: Activation, first: Role, second: Role, /) -> V:
        """The same after a vector is added to each half."""

    def attention(self, x: V, layer: int, spec: EncoderAttention, bias: Role, distance: int, /) -> V:
        """Every frame attends to all; the scores get a bias by how far the key is from the query."""

    def causal(self, x: V, role: Role, /) -> V:
        """Each number mixed with those of frames before: ``sum_k w[k] x[t + 1 - size + k]``, plus a bias."""


def record_sound(encoder: SoundEncoder) -> tuple[EncoderCall, ...]:
    """What an encoder asks for from the spectrogram to the features, both projections included."""
    recorder, parameters = EncoderRecorder(), encoder.parameters
    x = encoder.tower(recorder, parameters)
    encoder.project(recorder, x, parameters, "speech")
    encoder.project(recorder, x, parameters, "vision")
    return tuple(recorder.calls)
