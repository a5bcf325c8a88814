"""What a model that sees or hears has beside its language model: encoders, whose features become tokens.

Roles in an encoder begin with its name and a dot, ``vision.attn_q``, so that none is one of the decoder's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from phiconv.brief import Brief
from phiconv.ir.encodings import FloatEncoding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from phiconv.ir.encodings import Encoding
    from phiconv.ir.roles import Role
    from phiconv.ir.tensors import Encoded, Tensor

__all__ = [
    "Beside",
    "Encoder",
    "Hearing",
    "Picture",
    "Senses",
    "SoundEncoder",
    "Vision",
    "flat_rows",
]


@dataclass(frozen=True, slots=True, repr=False)
class Vision(Brief):
    """The validated numbers of an encoder of pictures.

    Attributes:
        num_hidden_layers: Those that are computed; a checkpoint may hold more.
        patch_size: Pixels of a side of a patch.
        crop_size: Pixels of a side of what is encoded at a time; None for a whole picture of any size.
        positions: Rows of the table of positions.
        features: Numbers of a feature, which is a token of the language model: its hidden size.
        activation: Between the two matrices of a layer.
        merged: Patches of how many rows, and as many columns, become one feature.
        channels_last: The numbers of a patch are in the order row, column, colour; else colour, row, column.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    crop_size: int | None
    positions: int
    features: int
    norm_epsilon: float
    activation: Literal["quick_gelu", "gelu_tanh"]
    merged: int = 1
    channels_last: bool = False

    @property
    def head_dim(self) -> int:
        """Dimensions of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def patches(self) -> int:
        """Patches of a side of a crop."""
        assert self.crop_size is not None  # noqa: S101 - who asks has crops
        return self.crop_size // self.patch_size


@dataclass(frozen=True, slots=True, repr=False)
class Picture(Brief):
    """A picture, ready for an encoder.

    Attributes:
        pixels: Normalized, float32 of shape (crops, 3, height, width). Where there are crops, the first is
            the whole picture made small, and the others are row by row what it consists of.
        grid: Rows and columns of those others; (0, 0) for a picture that is encoded as a whole.
        mask: Which patches show something, bool of shape (crops, rows of patches, columns); None for all.
    """

    pixels: NDArray[np.float32]
    grid: tuple[int, int] = (0, 0)
    mask: NDArray[np.bool_] | None = None


class Stage(Protocol):
    """A piece of an encoder, over the operations of `phiconv.forward.encoder_ops.EncoderOps`."""

    def __call__(self, ops: Any, x: Any, parameters: Any, /) -> Any:
        """What becomes of a value."""


@dataclass(frozen=True, slots=True, repr=False)
class Encoder(Brief):
    """An encoder with its weights.

    Attributes:
        parameters: Its numbers.
        tensors: The weights that it computes with, by role. A convolution over patches is a matrix.
        stored: All of its tensors under the names of the checkpoint, unused ones too.
        names: What the checkpoint calls each of `tensors`.
        tower: From the input to a vector for each patch.
        arrange: From these to one for each feature, separators among them.
        project: From these to the features.
    """

    parameters: Vision
    tensors: Mapping[Role, Tensor]
    stored: Mapping[str, Tensor]
    names: Mapping[Role, str]
    tower: Callable[[Any, Any], Any]
    arrange: Stage
    project: Stage


@dataclass(frozen=True, slots=True, repr=False)
class Hearing(Brief):
    """The validated numbers of an encoder of sounds, a Conformer (https://arxiv.org/abs/2005.08100).

    Attributes:
        num_hidden_layers: Blocks.
        channels: Of the convolutions that subsample.
        mels: Bands of the spectrogram.
        distance: Beyond how many frames the bias of attention stays the same.
        features: Hidden size of the language model.
        subsampling: Frames of the spectrogram that become one.
        longest: Frames, after subsampling, that are encoded together; longer sounds are cut.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    channels: int
    mels: int
    distance: int
    features: int
    norm_epsilon: float = 1e-5
    subsampling: int = 8
    longest: int = 500

    @property
    def head_dim(self) -> int:
        """Dimensions of an attention head."""
        return self.hidden_size // self.num_attention_heads


Beside: TypeAlias = Literal["speech", "vision"]
"""Whether a sound is alone in a prompt, or beside a picture: each way has a projection of its own."""


@dataclass(frozen=True, slots=True, repr=False)
class SoundEncoder(Brief):
    """An encoder of sounds with its weights.

    Attributes:
        parameters: Its numbers.
        tensors: The weights that it computes with, by role.
        stored: Its tensors under the names of the checkpoint.
        tower: From the spectrogram to a vector for each (subsampled) frame.
        project: From these to the features; takes a `Beside` as well.
    """

    parameters: Hearing
    tensors: Mapping[Role, Tensor]
    stored: Mapping[str, Tensor]
    tower: Callable[[Any, Any], Any]
    project: Callable[[Any, Any, Any, Beside], Any]


@dataclass(frozen=True, slots=True, repr=False)
class Senses(Brief):
    """What a multimodal model has beside the language model.

    Attributes:
        kind: ``model_type`` on the hub: ``phi3_v``, ``phi4mm``, ``phi4-siglip``.
        config: config.json as a whole.
        vision: None for a model that does not see, or not in a way that is known.
        preprocessor: preprocessor_config.json; empty where there is none.
        hearing: None for a model that does not hear.
    """

    kind: str
    config: Mapping[str, Any]
    vision: Encoder | None = None
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    hearing: SoundEncoder | None = None


@dataclass(frozen=True, slots=True)
class _Joined:
    """A stored tensor of floats some rows of which are one: a convolution, seen as a matrix."""

    tensor: Tensor
    rows: int

    @property
    def label(self) -> str:
        return self.tensor.label

    @property
    def encoding(self) -> Encoding:
        return self.tensor.encoding

    def read(self, start: int, stop: int) -> Encoded:
        rows = self.tensor.read(start * self.rows, stop * self.rows)
        assert isinstance(rows, np.ndarray)  # noqa: S101 - flat_rows has seen floats
        return rows.reshape(stop - start, -1)

    def changed(self) -> bool:
        return self.tensor.changed()


def flat_rows(tensor: Tensor) -> Tensor:
    """A tensor of floats as a matrix whose rows are all that follows the first dimension.

    A matrix stays as it is, in whatever blocks.

    Raises:
        ValueError: It is a vector, or another tensor stored in blocks.
    """
    if len(tensor.shape) == 2:
        return tensor
    if len(tensor.shape) < 2 or not isinstance(tensor.encoding, FloatEncoding):
        raise ValueError(f"{tensor.shape} of {tensor.encoding.name} has no rows to join")
    rows = tensor.rows // tensor.shape[0]
    shape = (tensor.shape[0], rows * tensor.columns)
    return type(tensor).of(_Joined(tensor, rows), shape) if rows != 1 else tensor.reshape(shape)
