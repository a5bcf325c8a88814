"""The recipes of NNCF, as data: which scheme each matrix of an OpenVINO model gets.

Facts from NNCF 3.4 (``nncf.compress_weights``) and optimum-intel 2.2. Four bits are for the matrices of the
layers; the embedding and the head get eight, and so does what cannot be cut into groups. phiconv differs in
two things, unless the runtime's own choice is asked for: the router of a mixture of experts, a tiny matrix on
which much depends, is kept at 8 bits; and 8 bits are integers beside 4-bit floats too, where NNCF takes 8-bit
floats, which are larger, less exact, and expanded when OpenVINO loads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.architectures.architecture import ENDS
from phiconv.errors import UsageError
from phiconv.ir import (
    BF16,
    F16,
    OPENVINO_MXFP4,
    OPENVINO_MXFP8,
    FloatEncoding,
    openvino_affine,
    openvino_nf4,
)
from phiconv.quantizers.repack import stays
from phiconv.recipes.grammar import FLOAT_ALIASES, FLOATS, Family, Grammar
from phiconv.recipes.sensitivity import EPSILON, EPSILON_16, sensitivities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv.recipes.grammar import Name
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["OPTIONS", "PRESETS", "RECIPES", "TYPES", "assign", "cast", "type_of"]

PRESETS = {"q4": "int4-asym", "q8": "int8-asym", "f16": "f16", "bf16": "bf16", "f32": "f32"}
"""What ``--q4``, ``--q8`` and so on mean."""

OPTIONS = frozenset(
    "tensor_types allow_requantize match_runtime short_context long_context effort calibration ratio "
    "all_layers "
    "target_size bits_per_weight text_only".split()
)
"""The fields of `phiconv.recipes.Choices` that mean something here."""

_MICROSCALING = {"mxfp4": OPENVINO_MXFP4, "mxfp8": OPENVINO_MXFP8}
_LEAST_GROUP = 32
"""Rows that do not divide into groups are cut into smaller ones, but not into smaller ones than that."""

_GROUPS = (128, 64, 32)  # the usual one first
_KINDS = ("asym", "sym")

RECIPES = Grammar(
    (
        Family(("int4",), (_KINDS,), (*_GROUPS, 0)),
        Family(("int8",), (_KINDS,)),
        Family(("nf4",), groups=_GROUPS),
        Family(tuple(_MICROSCALING), groups=(32,)),
        Family(tuple(FLOATS)),
    ),
    FLOAT_ALIASES | {"int4": "int4-asym", "int8": "int8-asym", "mxfp8-e4m3": "mxfp8"},
)
"""How the recipes are called."""

TYPES = RECIPES
"""What a single matrix can be turned into."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a matrix becomes.

    Attributes:
        kind: "asym" or "sym" for integers, "nf4", or a key of the tables of microscaling and of floats.
        bits: Of a code.
        group_size: Weights with one scale; 0 for a whole row.
    """

    kind: str
    bits: int = 0
    group_size: int = 0

    def encoding(self, columns: int) -> Encoding | None:
        """The encoding of rows of this length; None if they cannot be cut into groups."""
        if self.kind in FLOATS:
            return FLOATS[self.kind]
        size = self.group_size or columns
        if columns % size:
            size = columns & -columns  # the largest power of two that divides it
        if size % 4 or (size < _LEAST_GROUP and size != columns):
            return None
        if self.kind in _MICROSCALING:
            return _MICROSCALING[self.kind] if size == self.group_size else None
        if self.kind == "nf4":
            return openvino_nf4(size)
        return openvino_affine(self.bits, size, symmetric=self.kind == "sym")


def _scheme(name: Name) -> Scheme:
    if name.stem in FLOATS:
        return Scheme(name.stem)
    return Scheme(name.variants[0] if name.variants else name.stem, int(name.stem[-1]), name.group)


_BACKUP = Scheme("asym", 8)
"""Of the two ends of the model, and of matrices that are not in the share of 4 bits."""

_RUNTIME_BACKUPS = {"mxfp4": Scheme("mxfp8", 8, 32)}
"""What NNCF takes in its place, by recipe."""


def assign(
    recipe: str,
    model: Model,  # noqa: ARG001 - a `Recipes`
    tensors: Sequence[OutputTensor],
    choices: Choices,
) -> list[Encoding]:
    """The encoding of every tensor.

    Args:
        recipe: One of the names of `RECIPES`.
        model: The source.
        tensors: What will be stored, under the names of a checkpoint.
        choices: What the user wants otherwise. A ratio below 1 reads the weights of the layers.

    Raises:
        UsageError: A ratio or ``--all-layers`` for a recipe that has nothing to choose.
    """
    scheme = _scheme(RECIPES.read(recipe))
    if scheme.bits != 4 and (choices.ratio is not None or choices.all_layers):
        raise UsageError(f"--ratio and --all-layers mean nothing for {recipe}", hint="choose 4 bits")
    schemes = {t.name: scheme for t in tensors}
    if scheme.bits == 4:
        backup = _RUNTIME_BACKUPS.get(recipe, _BACKUP) if choices.match_runtime else _BACKUP
        kept = _backup(scheme, tensors, choices)
        schemes |= {
            t.name: backup for t in tensors if t.name in kept and not _is_stored_so(t, scheme, backup)
        }
    for tensor in tensors:
        for pattern, name in choices.overrides:
            if pattern.search(tensor.name):
                schemes[tensor.name] = type_of(name)
                break
    return [t.required or _encoding(schemes[t.name], t) for t in tensors]


def _encoding(scheme: Scheme, tensor: OutputTensor) -> Encoding:
    columns = tensor.tensor.columns
    return scheme.encoding(columns) or _BACKUP.encoding(columns) or F16


def _is_stored_so(tensor: OutputTensor, scheme: Scheme, backup: Scheme) -> bool:
    """Whether a matrix has blocks of the recipe's own type, which 8 bits would not make better."""
    return stays(tensor.tensor.encoding, *(s.encoding(tensor.tensor.columns) for s in (scheme, backup)))


def _backup(scheme: Scheme, tensors: Sequence[OutputTensor], choices: Choices) -> set[str]:
    """The names of the matrices that get 8 bits although the recipe says 4."""
    matrices = [t for t in tensors if len(t.tensor.shape) > 1]
    kept = set()
    for tensor in matrices:
        assert tensor.role is not None  # noqa: S101 - OpenVINO has no plain tensors
        is_end = tensor.role.name in ENDS and not choices.all_layers
        is_router = tensor.role.name == "router" and not choices.match_runtime
        if is_end or is_router or scheme.encoding(tensor.tensor.columns) is None:
            kept.add(tensor.name)
    ratio = 1.0 if choices.ratio is None else choices.ratio
    if ratio < 1:
        kept |= _most_sensitive(
            [t for t in matrices if t.name not in kept], ratio, traced=choices.match_runtime
        )
    return kept


def _most_sensitive(tensors: Sequence[OutputTensor], ratio: float, *, traced: bool) -> set[str]:
    """Those that are left when matrices are taken, the least sensitive first, until they are the share."""
    epsilons = [_epsilon(t) if traced else EPSILON for t in tensors]
    scores = sensitivities([t.tensor for t in tensors], epsilons)
    total, taken = sum(t.tensor.size for t in tensors), 0
    left = {t.name for t in tensors}
    for _, tensor in sorted(zip(scores, tensors, strict=True), key=lambda pair: pair[0]):
        taken += tensor.tensor.size
        if taken / total >= ratio:
            break
        left.remove(tensor.name)
    return left


def _epsilon(tensor: OutputTensor) -> float:
    """What NNCF adds to an error depends on the type that a weight has in a graph traced by optimum-intel.

    Matrices of linear layers keep their 16 bits there; a router and experts become float32. So whatever the
    errors are, the former look less sensitive.
    """
    assert tensor.role is not None  # noqa: S101 - OpenVINO has no plain tensors
    widened = tensor.role.name == "router" or len(tensor.tensor.shape) > 2
    return EPSILON if widened or tensor.tensor.encoding not in (F16, BF16) else EPSILON_16


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding | None:  # noqa: ARG001 - a `Recipes`
    """None: weights are quantized as they are stored."""
    return None


def type_of(name: str) -> Scheme:
    """What a single matrix is turned into, by its name; an unknown one raises `UsageError`."""
    return _scheme(RECIPES.read(name))
