"""The recipes of ONNX Runtime's tools, as data: what each matrix of an ONNX model becomes.

The schemes are those of its quantizers (onnxruntime 1.31) and of GenAI's model builder (0.18). phiconv
differs in the two ends of the model: the embedding and the output matrix get 8 bits, where the builder keeps
a float32 embedding, or gives both 4 bits where they are one. The runtime's own choice can be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from phiconv.architectures import ARCHITECTURES
from phiconv.errors import UsageError
from phiconv.ir import F16, F32, ONNX_AFFINE, BlockEncoding, FloatEncoding, onnx_affine, onnx_channel
from phiconv.ir.model import Role
from phiconv.quantizers.repack import stays
from phiconv.recipes.grammar import FLOAT_ALIASES, FLOATS, Family, Grammar
from phiconv.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding, Tensor
    from phiconv.ir.model import Model
    from phiconv.recipes.choices import Choices
    from phiconv.recipes.grammar import Name
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["OPTIONS", "PRESETS", "RECIPES", "TYPES", "assign", "cast", "in_graph", "type_of"]

PRESETS = {"q4": "int4", "q8": "int8", "f16": "f16", "bf16": "bf16", "f32": "f32"}
"""What ``--q4``, ``--q8`` and so on mean."""

OPTIONS = frozenset(
    "tensor_types allow_requantize effort calibration match_runtime short_context long_context target layout "
    "accuracy_level context attention ranges "
    "target_size bits_per_weight text_only".split()
)
"""The fields of `phiconv.recipes.Choices` that mean something here."""

_BLOCK_SIZES = (32, 16, 64, 128, 256)  # the usual one first


_TARGETS = {"cpu": F32, "cuda": F16, "dml": F16, "webgpu": F16, "qnn": F16}
"""What graphs for each target compute in."""

_IN_F32 = {"qnn": ("f32", "w4a16", "w8a16")}
"""Recipes whose graphs are in float32 all the same; the processor computes in float16."""

TYPES = Grammar(
    (
        Family(tuple(FLOATS)),
        Family(("int4", "int8"), (("", "rtn", "qdq"), ("", "asym")), _BLOCK_SIZES),
        Family(("int4", "int8"), (("k_quant",),), _BLOCK_SIZES),
        Family(("w4a16", "w8a16")),
    ),
    FLOAT_ALIASES,
)
"""What a single matrix can be turned into."""

_MIXED = Family(("int4",), (("k_quant_mixed",),), _BLOCK_SIZES)

RECIPES = Grammar((*TYPES.families, _MIXED), FLOAT_ALIASES)
"""How the recipes are called."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a matrix becomes.

    Attributes:
        encoding: The encoding.
        high: That of the more important matrices.
        ends: That of the embedding and the output matrix.
    """

    encoding: Encoding
    high: Encoding
    ends: Encoding


def _scheme(name: Name) -> Scheme:
    if dtype := FLOATS.get(name.stem):
        return Scheme(dtype, dtype, dtype)
    if name.stem.startswith("w"):
        channels = onnx_channel(int(name.stem[1]), 4)  # as wide as its matrix, later
        return Scheme(channels, channels, onnx_affine(8, _BLOCK_SIZES[0], F32))
    bits, size = int(name.stem[-1]), name.group
    method = name.variants[0].removesuffix("_mixed") or "default"
    symmetric = method != "k_quant" and "asym" not in name.variants
    encoding, eight = (onnx_affine(b, size, F32, symmetric=symmetric, method=method) for b in (bits, 8))
    ends = onnx_affine(8, size, F32, method="qdq" if method == "qdq" else "default")
    return Scheme(encoding, eight if "k_quant_mixed" in name.variants else encoding, ends)


def assign(recipe: str, model: Model, tensors: Sequence[OutputTensor], choices: Choices) -> list[Encoding]:
    """The encoding of every tensor.

    Args:
        recipe: One of the names of `RECIPES`.
        model: Its number of layers decides some choices.
        tensors: What will be stored.
        choices: What the user wants otherwise.

    Raises:
        UsageError: A target or an accuracy level that there is not.
    """
    scheme = _scheme(RECIPES.read(recipe))
    dtype = _float_type(recipe, choices)
    if isinstance(scheme.encoding, FloatEncoding) and dtype == F16 != scheme.encoding:
        raise UsageError(f"--target {choices.target} computes in float16", hint="give --f16, or quantize")
    if choices.attention is not None:
        _check_attention(choices)
    encodings = [_in_type(_encoding(t, scheme, model, choices), dtype) for t in tensors]
    _check_channels(tensors, encodings, choices)
    _match_experts(tensors, encodings)
    _check_standard(tensors, encodings, choices)
    return encodings


def _check_attention(choices: Choices) -> None:
    if choices.target != "qnn":
        raise UsageError("--attention means nothing here", hint="it goes with --target qnn")


def _check_channels(tensors: Sequence[OutputTensor], encodings: Sequence[Encoding], choices: Choices) -> None:
    """Refuses quantized activations where no range is known, or where nobody computes with them.

    Raises:
        UsageError: There are no ranges, or they are not needed; another target; an end of the model.
    """
    found = [t for t, e in zip(tensors, encodings, strict=True) if _has_channels(e)]
    if not found:
        if choices.ranges is not None:
            raise UsageError("--ranges means nothing here", hint="it goes with --quant w8a16 or w4a16")
        return
    if choices.target != "qnn":
        raise UsageError("activations of 16 bits are for Qualcomm's processors", hint="give --target qnn")
    if end := next((t.name for t in found if t.role is None or t.role.layer is None), ""):
        raise UsageError(f"{end}: no activations are quantized there", hint="give it int8 or int4")
    if any(e == F16 or (isinstance(e, BlockEncoding) and e.scale_type == F16) for e in encodings):
        raise UsageError(
            "products of integers stand in graphs of float32",
            hint="give --quant w4a16 or w8a16, and blocks to single matrices with --tensor-type",
        )
    if choices.ranges is None:
        raise UsageError(
            "activations of 16 bits need ranges",
            hint="phiconv calibrate MODEL -o ranges.json, then --ranges ranges.json",
        )
    roles = (Role(role, t.role.layer) for t in found if t.role for role in _joined(t))
    if missing := next((role for role in roles if role not in choices.ranges.matrices), None):
        raise UsageError(f"the ranges have none of {missing}", hint="measure them on this model")


def _joined(tensor: OutputTensor) -> tuple[str, ...]:
    assert tensor.role is not None  # noqa: S101 - a matrix has one
    return ("attn_q", "attn_k", "attn_v") if "qkv_proj" in tensor.name else (tensor.role.name,)


def _check_standard(tensors: Sequence[OutputTensor], encodings: Sequence[Encoding], choices: Choices) -> None:
    """Refuses what ONNX's own operators have no form for, or a target no such operator.

    Raises:
        UsageError: An embedding of 4 bits; Qualcomm's processors.
    """
    for tensor, encoding in zip(tensors, encodings, strict=True):
        if tensor.role is None or not isinstance(encoding, BlockEncoding) or _method(encoding) != "qdq":
            continue
        if choices.target == "qnn":
            raise UsageError(
                "--target qnn multiplies no floats with blocks in ONNX's own operators",
                hint="give int4 or int8 without qdq",
            )
        if tensor.role.name == "token_embedding" and encoding.bits < 8:
            raise UsageError(
                f"{tensor.name}: ONNX's own operators look no rows of 4 bits up",
                hint="give it int8-qdq, or int4",
            )


def _match_experts(tensors: Sequence[OutputTensor], encodings: list[Encoding]) -> None:
    """Gives the experts' matrices of a layer blocks of one size, since one operator reads them.

    Raises:
        UsageError: One of them is quantized, and the other one is not.
    """
    layers: dict[int | None, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.role is not None and tensor.role.name.startswith("experts_"):
            layers.setdefault(tensor.role.layer, []).append(i)
    for group in layers.values():
        size = min(encodings[i].block_size for i in group)
        kept = [i for i in group if isinstance(encodings[i], FloatEncoding)]
        for i in group:
            if not kept:
                encodings[i] = _changed(encodings[i], size=size)
            elif i not in kept:
                raise UsageError(
                    f"{tensors[i].name} cannot be quantized where {tensors[kept[0]].name} is not",
                    hint="give both the same type with --tensor-type experts=TYPE",
                )


def _float_type(recipe: str, choices: Choices) -> FloatEncoding:
    """What the graph computes in.

    Raises:
        UsageError: There is no such target.
    """
    target = choices.target or next(iter(_TARGETS))
    if target not in _TARGETS:
        hint = did_you_mean(target, _TARGETS, f"one of {', '.join(_TARGETS)}")
        raise UsageError(f"--target {target}: no such target", hint=hint)
    return F32 if recipe in _IN_F32.get(target, ()) else _TARGETS[target]


def _in_type(encoding: Encoding, dtype: FloatEncoding) -> Encoding:
    """The encoding where a graph computes in another type: its scales have that, and so have its floats."""
    if dtype == F32:  # which other floats are cast to as the model is loaded
        return encoding
    return _changed(encoding, dtype=dtype) if isinstance(encoding, BlockEncoding) else dtype


def in_graph(encoding: Encoding, recipe: str, choices: Choices) -> Encoding:
    """An encoding in a graph of this recipe."""
    return _in_type(encoding, _float_type(recipe, choices))


def cast(recipe: str, model: Model, choices: Choices) -> FloatEncoding | None:  # noqa: ARG001 - as others
    """Weights are quantized as they are, or in what the graph computes in where that is less."""
    dtype = _float_type(recipe, choices)
    return None if dtype == F32 else dtype


def type_of(name: str) -> Encoding:
    """What a single matrix is turned into, by its name; an unknown one raises `UsageError`."""
    return _scheme(TYPES.read(name)).encoding


def _encoding(tensor: OutputTensor, scheme: Scheme, model: Model, choices: Choices) -> Encoding:
    if tensor.role is None or len(tensor.tensor.shape) < 2:
        return F32  # the graph computes in it
    encoding = _by_rule(tensor, scheme, model, match_runtime=choices.match_runtime)
    stored = tensor.tensor.encoding
    if stays(stored, scheme.encoding, encoding):
        encoding = scheme.encoding
    for pattern, name in choices.overrides:
        if pattern.search(tensor.name):
            encoding = type_of(name)
            break
    return _fitting(encoding, tensor.tensor)


def _fitting(encoding: Encoding, tensor: Tensor) -> Encoding:
    """The encoding with the largest blocks, up to its own, that rows can be cut into, or a float."""
    if _has_channels(encoding):
        return onnx_channel(encoding.bits, tensor.columns) if tensor.columns % 4 == 0 else F32
    size = encoding.block_size
    while tensor.columns % size and size > min(_BLOCK_SIZES):
        size //= 2
    if tensor.columns % size == 0:
        return _changed(encoding, size=size)
    return tensor.encoding if tensor.encoding in FLOATS.values() else F32


def _changed(encoding: Encoding, *, size: int | None = None, dtype: FloatEncoding | None = None) -> Encoding:
    """The same scheme with blocks of another size, or scales of another type."""
    if not isinstance(encoding, BlockEncoding) or _has_channels(encoding):
        return encoding
    return onnx_affine(
        encoding.bits,
        size or encoding.block_size,
        dtype or encoding.scale_type,
        symmetric=not encoding.has_zero_point,
        method=_method(encoding),
    )


def _has_channels(encoding: Encoding) -> TypeGuard[BlockEncoding]:
    """Whether each row of a matrix has one scale."""
    return isinstance(encoding, BlockEncoding) and encoding == onnx_channel(
        encoding.bits, encoding.block_size
    )


def _method(encoding: BlockEncoding) -> str:
    """The quantizer of a matrix, which is in nothing but the encoding's name."""
    if _has_channels(encoding):
        return "channel"
    return next(name for name, encodings in ONNX_AFFINE.items() if encoding in encodings)


def _by_rule(tensor: OutputTensor, scheme: Scheme, model: Model, *, match_runtime: bool) -> Encoding:
    assert tensor.role is not None  # noqa: S101 - a matrix has one
    match tensor.role.name:
        case "router":  # tiny, and much depends on it
            return scheme.encoding if isinstance(scheme.encoding, FloatEncoding) else F32
        case "token_embedding" | "output" if not match_runtime:
            return scheme.ends
        case "token_embedding":
            tied = model.hyperparameters is not None and model.hyperparameters.tie_word_embeddings
            return _shared(scheme) if tied else _runtime_embedding(scheme)
        case "output":
            return scheme.high
        case "ffn_down" if match_runtime and not _has_down_proj(model):
            pass  # the builder looks for this name
        case "attn_q" | "attn_v" | "ffn_down" if _more_bits(tensor.role.layer or 0, model):
            return scheme.high
    return scheme.encoding


def _has_down_proj(model: Model) -> bool:
    """Whether the hub calls the way out of the feed-forward part so."""
    names = ARCHITECTURES[model.architecture].names if model.architecture else {}
    return names.get("ffn_down", "mlp.down_proj").endswith("down_proj")


def _shared(scheme: Scheme) -> Encoding:
    """Of a matrix that is also the embedding; ONNX's own Gather takes no 4 bits."""
    standard = isinstance(scheme.encoding, BlockEncoding) and _method(scheme.encoding) == "qdq"
    return scheme.ends if standard else scheme.high


def _runtime_embedding(scheme: Scheme) -> Encoding:
    """The builder quantizes no embedding of its own."""
    return scheme.encoding if isinstance(scheme.encoding, FloatEncoding) else F32


def _more_bits(layer: int, model: Model) -> bool:
    """The first and the last eighth of the layers, and every third between; as in llama.cpp's Q4_K_M."""
    assert model.hyperparameters is not None  # noqa: S101 - ONNX has no files of plain tensors
    count = model.hyperparameters.num_hidden_layers
    return layer < count / 8 or layer >= 7 * count / 8 or (layer - round(count / 8)) % 3 == 2
