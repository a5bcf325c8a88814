"""Prompts with pictures and sounds: tags in the text become places for features.

The tags are those of the models' own processors: ``<|image_1|>`` and ``<|audio_1|>``, numbered from 1, and
``<image>`` for Phi-4-reasoning-vision. Text between tags is encoded piece by piece.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from phiconv.errors import UsageError
from phiconv.forward.encoders import features
from phiconv.forward.sounds import sound_features
from phiconv.perception.pictures import prepare
from phiconv.perception.sounds import log_mel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from phiconv.forward.layers import Array
    from phiconv.ir.senses import Senses

__all__ = ["Prompt", "make_prompt"]

_NUMBERED = re.compile(r"<\|(image|audio)_(\d{1,3})\|>")
_PLAIN = re.compile(r"<(image)>()")
_PLACE = -1


class Prompt(NamedTuple):
    """What a language model is given.

    Attributes:
        ids: Token ids; -1 where a feature stands.
        features: In the order of these, shape (features, hidden size); None where there is none.
    """

    ids: list[int]
    features: Array | None


def make_prompt(
    senses: Senses | None,
    text: str,
    encode: Callable[[str], Sequence[int]],
    pictures: Sequence[NDArray[np.uint8]] = (),
    sounds: Sequence[NDArray[np.floating[Any]]] = (),
) -> Prompt:
    """Encodes a text with what there is to see and to hear.

    Args:
        senses: The model's; None for one of text alone.
        text: With tags; where it has none, pictures and sounds come before it.
        encode: Turns a piece of text into ids, a bos token in front if the tokenizer asks for one.
        pictures: Red, green, blue, uint8 of shape (height, width, 3).
        sounds: See `phiconv.perception.sounds.log_mel`.

    Raises:
        UsageError: The model does not see, or not hear; tags and pictures do not fit each other.
    """
    given = {"image": pictures, "audio": sounds}
    if not pictures and not sounds:
        return Prompt([*encode(text)], None)
    if senses is None or (pictures and senses.vision is None) or (sounds and senses.hearing is None):
        what = "see" if pictures and (senses is None or senses.vision is None) else "hear"
        raise UsageError(f"this model does not {what}", hint="leave out --image and --audio")
    tag = _PLAIN if senses.kind == "phi4-siglip" else _NUMBERED
    pieces = _pieces(text, tag, {what: len(some) for what, some in given.items()})
    ids: list[int] = []
    found: list[Array] = []
    for piece in pieces:
        if isinstance(piece, str):
            ids += encode(piece) if piece else ()
            continue
        what, number = piece
        found.append(_features(senses, what, given[what][number], beside_picture=bool(pictures)))
        ids += [_PLACE] * len(found[-1])
    return Prompt(ids, np.concatenate(found))


def _pieces(text: str, tag: re.Pattern[str], counts: dict[str, int]) -> list[str | tuple[str, int]]:
    """Texts, and which picture or sound stands between them, counted from 0."""
    if tag.search(text) is None:
        first: list[str | tuple[str, int]] = [(what, n) for what, most in counts.items() for n in range(most)]
        return [*first, text]
    pieces: list[str | tuple[str, int]] = []
    at = 0
    for match in tag.finditer(text):
        number = int(match[2]) - 1 if match[2] else sum(isinstance(piece, tuple) for piece in pieces)
        pieces += [text[at : match.start()], (match[1], number)]
        at = match.end()
    pieces.append(text[at:])
    used = [piece for piece in pieces if isinstance(piece, tuple)]
    for what, most in counts.items():
        numbers = sorted(number for kind, number in used if kind == what)
        if numbers != [*range(most)]:
            raise UsageError(
                f"the prompt has {len(numbers)} places for {what}, and {most} are given, numbered from 1",
                hint="give each one a place, or leave the tags out",
            )
    return pieces


def _features(senses: Senses, what: str, given: NDArray[Any], *, beside_picture: bool) -> Array:
    if what == "image":
        assert senses.vision is not None  # noqa: S101 - make_prompt has looked
        return features(senses.vision, prepare(senses, given))
    assert senses.hearing is not None  # noqa: S101 - the same
    spectrogram = log_mel(given, senses.hearing.parameters.mels)
    return sound_features(senses.hearing, spectrogram, beside="vision" if beside_picture else "speech")
