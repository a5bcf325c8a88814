"""A compressed-tensors folder as a source: its arrays put together again, under the names of the hub.

config.json has groups of layers, each with a scheme. The arrays themselves say nearly as much, so a layer
belongs to the group that fits them; patterns of names, which may be any regular expression, are not run.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from phiconv import ir
from phiconv.errors import MalformedFileError, UnsupportedModelError, printable
from phiconv.ir.server import CT_MXFP4, CT_MXFP8, CT_NVFP4, FP8_BLOCK, compressed_fp8, compressed_int
from phiconv_formats.server.compressed_packing import WordsOfRows, unpack
from phiconv_formats.shared.rows import AssembledRows, SharedRows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from phiconv.errors import InputError
    from phiconv.ir.model import Checkpoint

__all__ = ["as_checkpoint"]

_NAME = "compressed-tensors"

_PARTS = (
    "weight_packed",
    "weight",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_global_scale",
)
_OF_ACTIVATIONS = ("input_scale", "input_global_scale", "input_zero_point")
"""What only a runtime needs that quantizes activations, too."""

# What transformers 5 calls the parts of a PhiMoE, and llm-compressor after it.
_EXPERT = re.compile(
    r"(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(gate|up|down)_proj\.weight"
)
_HUB_EXPERTS = {"gate": "w1", "down": "w2", "up": "w3"}
_ROUTER = re.compile(r"(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.router\.weight")

_MOST_GROUPS = 4096


def as_checkpoint(folder: Checkpoint, quantization: Mapping[str, Any]) -> Checkpoint:
    """A folder that was opened as a Hugging Face one, with its matrices as the model has them.

    Raises:
        MalformedFileError: Arrays that do not fit each other or the configuration.
        UnsupportedModelError: A scheme that phiconv does not read.
    """
    bases = {name.rpartition(".")[0] for name in folder.stored if name.endswith(_ENDINGS)}
    if not bases:
        return folder
    groups = _groups(quantization, folder)
    ignored = quantization.get("ignore")
    stored: dict[str, ir.Tensor] = {}
    for name, tensor in folder.stored.items():
        base, _, suffix = name.rpartition(".")
        if base not in bases or suffix not in (*_PARTS, *_OF_ACTIVATIONS):
            stored[name] = tensor
            continue
        if f"{base}.weight" in stored:
            continue
        arrays = {s: folder.stored[n] for s in _PARTS if (n := f"{base}.{s}") in folder.stored}
        layer = _Layer(base, arrays, folder.path)
        if isinstance(ignored, list) and base in ignored:
            raise layer.refusal("is quantized, and config.json says that it is not")
        if {"weight", "weight_packed"} <= arrays.keys():
            raise layer.refusal("is there twice, packed and not")
        if f"{base}.weight_g_idx" in folder.stored:
            hint = "take the unquantized model"
            raise layer.unsupported("is quantized in an order that phiconv does not read (actorder)", hint)
        stored[f"{base}.weight"] = _matrix(layer, groups)
    return replace(folder, format=_NAME, stored=stored, tensors=_named(stored, folder.config or {}))


_ENDINGS = (".weight_packed", ".weight_scale")


def _named(stored: Mapping[str, ir.Tensor], config: Mapping[str, Any]) -> dict[str, ir.Tensor]:
    """The same under the names of the hub."""
    if config.get("model_type") != "phimoe":
        return dict(stored)
    found = {}
    for name, tensor in stored.items():
        hub = name
        if expert := _EXPERT.fullmatch(name):
            layer, number, part = expert.groups()
            hub = f"{layer}.block_sparse_moe.experts.{number}.{_HUB_EXPERTS[part]}.weight"
        elif router := _ROUTER.fullmatch(name):
            hub = f"{router[1]}.block_sparse_moe.gate.weight"
        found[hub] = tensor
    return found


# ---------------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True, slots=True)
class _Group:
    """What config.json says of some layers, as far as weights go; nothing but the types has been checked."""

    layout: Any
    weights: Mapping[str, Any]
    targets: tuple[Any, ...]

    def __str__(self) -> str:
        keys = ("num_bits", "type", "strategy", "group_size", "symmetric")
        said = ", ".join(f"{key} {self.weights.get(key)}" for key in keys)
        return printable(f"{self.layout}: {said}", 160)


def _groups(quantization: Mapping[str, Any], folder: Checkpoint) -> list[_Group]:
    """The groups of config.json.

    Raises:
        MalformedFileError: There are none.
        UnsupportedModelError: What is stored are not weights alone.
    """
    path = folder.config_path
    for key in ("sparsity_config", "transform_config"):
        said = quantization.get(key)
        if said and not (isinstance(said, dict) and said.get("format") == "dense"):
            message = "the weights are sparse" if key.startswith("sparsity") else "the weights are rotated"
            raise UnsupportedModelError(
                f"{message}, which phiconv does not read",
                path=path,
                at=f"key quantization_config.{key}",
                hint="take the unquantized model",
            )
    said = quantization.get("config_groups")
    groups = [*said.values()] if isinstance(said, dict) else []
    fine = all(isinstance(g, dict) and isinstance(g.get("weights"), dict) for g in groups)
    if not fine or not 0 < len(groups) <= _MOST_GROUPS:
        raise MalformedFileError(
            "expected groups of layers, each with what became of its weights",
            path=path,
            at="key quantization_config.config_groups",
        )
    usual = quantization.get("format")
    return [
        _Group(group.get("format") or usual, group["weights"], _listed(group.get("targets")))
        for group in groups
    ]


def _listed(targets: Any) -> tuple[Any, ...]:
    return tuple(targets) if isinstance(targets, list) else ()


# ---------------------------------------------------------------------------------------------------- layers


@dataclass(frozen=True, slots=True)
class _Layer:
    """The arrays of a layer, by the last part of their names."""

    base: str
    arrays: Mapping[str, ir.Tensor]
    path: Path

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an array; None if there is none."""
        return self.arrays[name].shape if name in self.arrays else None

    def kind(self, name: str) -> str:
        """The type of an array; "" if there is none."""
        return self.arrays[name].encoding.name if name in self.arrays else ""

    def refusal(self, message: str) -> InputError:
        """An error about this layer."""
        return MalformedFileError(message, path=self.path, at=f"tensor {printable(self.base)}.weight")

    def unsupported(self, message: str, hint: str) -> InputError:
        """An error about what is not read."""
        at = f"tensor {printable(self.base)}.weight"
        return UnsupportedModelError(message, path=self.path, at=at, hint=hint)


def _matrix(layer: _Layer, groups: list[_Group]) -> ir.Tensor:
    """A layer's weights, by the group that fits its arrays."""
    named = [group for group in groups if layer.base in group.targets]
    found: dict[str, ir.Tensor] = {}
    for group in named or groups:
        reader = _LAYOUTS.get(group.layout) if isinstance(group.layout, str) else None
        tensor = reader(layer, group) if reader else None
        if tensor is not None:
            found.setdefault(tensor.encoding.name, tensor)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        hint = "name the layer in one of them"
        raise layer.unsupported("several groups of config.json fit this layer", hint)
    said = "; ".join(str(group) for group in groups[:3])
    if not any(_is_known(group) for group in groups):
        message = f"is quantized in a way that phiconv does not read ({said})"
        raise layer.unsupported(message, "take the unquantized model")
    shapes = ", ".join(f"{name} {t.encoding.name} {list(t.shape)}" for name, t in layer.arrays.items())
    raise layer.refusal(f"{printable(shapes, 300)} do not fit what config.json says ({said})")


def _is_known(group: _Group) -> bool:
    """Whether a group is of a kind that is read, so that its arrays must be wrong."""
    bits, layout = group.weights.get("num_bits"), group.layout
    return isinstance(layout, str) and layout in _LAYOUTS and bits in (4, 8)


def _groups_of(group: _Group, columns: int) -> int:
    """Weights that share a scale in a row; 0 for what cannot be."""
    size, strategy = group.weights.get("group_size"), group.weights.get("strategy")
    if strategy in ("channel", "tensor") and columns % 8 == 0:
        return columns
    if strategy not in ("group", "tensor_group") or type(size) is not int or size < 8 or size % 8:
        return 0
    return size if columns % size == 0 else 0


def _scale_parts(
    layer: _Layer, rows: int, columns: int, size: int, strategy: object
) -> tuple[ir.FloatEncoding, ir.Tensor | SharedRows] | None:
    """The type of the scales, and those of rows; None where they do not fit."""
    scales = layer.arrays.get("weight_scale")
    if scales is None or not isinstance(scales.encoding, ir.FloatEncoding) or scales.encoding == ir.F64:
        return None
    if strategy == "tensor":
        single = math.prod(scales.shape) == 1 and len(scales.shape) == 1
        return (scales.encoding, SharedRows(scales, rows)) if single else None
    if scales.shape != (rows, columns // size):
        return None
    return scales.encoding, scales


def _packed(layer: _Layer, group: _Group) -> ir.Tensor | None:
    """Integers in words."""
    bits, symmetric = group.weights.get("num_bits"), group.weights.get("symmetric")
    if bits not in (4, 8) or type(symmetric) is not bool or group.weights.get("type") != "int":
        return None
    rows, columns = _said_shape(layer)
    size = _groups_of(group, columns) if columns > 0 else 0
    if not size or layer.shape("weight_packed") != (rows, columns * bits // 32):
        return None
    found = _scale_parts(layer, rows, columns, size, group.weights.get("strategy"))
    zero_points = layer.arrays.get("weight_zero_point")
    expected = ("i32", (-(-rows * bits // 32), columns // size))
    if found is None or symmetric != (zero_points is None):
        return None
    parts: tuple[Any, ...] = (layer.arrays["weight_packed"], found[1])
    if zero_points is not None:
        if (zero_points.encoding.name, zero_points.shape) != expected:
            return None
        parts = (*parts, WordsOfRows(zero_points, bits))
    encoding = compressed_int(f"w{bits}a16", size, found[0], symmetric=symmetric)
    return _assembled(encoding, parts, (rows, columns))


def _said_shape(layer: _Layer) -> tuple[int, int]:
    """What ``weight_shape`` says; (0, 0) where it or the codes are of another type."""
    shape = layer.arrays.get("weight_shape")
    if shape is None or shape.shape != (2,) or layer.kind("weight_shape") != "i64":
        return 0, 0
    rows, columns = (int(n) for n in np.asarray(shape.read(0, 2)).reshape(-1).view("<i8"))
    return (rows, columns) if layer.kind("weight_packed") == "i32" else (0, 0)


def _integers(layer: _Layer, group: _Group) -> ir.Tensor | None:
    """Integers in bytes."""
    bits, codes = group.weights.get("num_bits"), layer.arrays.get("weight")
    usual = group.weights.get("symmetric") is True and group.weights.get("type") == "int"
    if bits not in (4, 8) or not usual or codes is None or layer.kind("weight") != "i8":
        return None
    if len(codes.shape) != 2 or "weight_zero_point" in layer.arrays:
        return None
    rows, columns = codes.shape
    size = _groups_of(group, columns)
    found = _scale_parts(layer, rows, columns, size, group.weights.get("strategy")) if size else None
    if found is None:
        return None
    encoding = compressed_int(f"w{bits}a8", size, found[0])
    checked = partial(_checked_unpack, encoding, layer)
    return ir.Tensor.of(AssembledRows(encoding, (codes, found[1]), checked), (rows, columns))


def _checked_unpack(encoding: ir.BlockEncoding, layer: _Layer, codes: Any, scales: Any) -> ir.Blocks:
    """`unpack`, where a byte holds more than the code that it should."""
    blocks = unpack(encoding, codes, scales)
    if encoding.offset and blocks.codes.max(initial=0) >= 1 << encoding.bits:
        raise layer.refusal(f"has codes that are no integers of {encoding.bits} bits")
    return blocks


def _fp8(layer: _Layer, group: _Group) -> ir.Tensor | None:
    """E4M3 with a scale for the tensor, for every row, or for squares."""
    codes, strategy = layer.arrays.get("weight"), group.weights.get("strategy")
    if codes is None or len(codes.shape) != 2 or not _is_float(layer, group, "weight", "f8_e4m3", 8):
        return None
    rows, columns = codes.shape
    if strategy == "block":
        return _squares(layer, group, codes)
    size = _groups_of(group, columns) if strategy in ("channel", "tensor") else 0
    found = _scale_parts(layer, rows, columns, size, strategy) if size else None
    if found is None:
        return None
    return _assembled(compressed_fp8("fp8-dynamic", size, found[0]), (codes, found[1]), (rows, columns))


def _squares(layer: _Layer, group: _Group, codes: ir.Tensor) -> ir.Tensor | None:
    rows, columns = codes.shape
    size, scales = math.gcd(FP8_BLOCK, columns), layer.arrays.get("weight_scale")
    if scales is None or not isinstance(scales.encoding, ir.FloatEncoding) or scales.encoding == ir.F64:
        return None
    expected = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
    if group.weights.get("block_structure") != [FP8_BLOCK, FP8_BLOCK] or scales.shape != expected or size % 8:
        return None
    shared = SharedRows(scales, FP8_BLOCK, FP8_BLOCK // size, columns // size)
    return _assembled(compressed_fp8("fp8-block", size, scales.encoding), (codes, shared), (rows, columns))


def _nvfp4(layer: _Layer, group: _Group) -> ir.Tensor | None:
    """E2M1 with a scale for 16 weights, and one for the tensor."""
    codes = layer.arrays.get("weight_packed")
    if codes is None or not _is_float(layer, group, "weight_packed", "u8", 4) or len(codes.shape) != 2:
        return None
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    whole, scales = layer.arrays.get("weight_global_scale"), layer.arrays.get("weight_scale")
    fine = columns % 16 == 0 and layer.shape("weight_scale") == (rows, columns // 16)
    if not fine or layer.kind("weight_scale") != "f8_e4m3" or group.weights.get("group_size") != 16:
        return None
    if whole is None or whole.shape != (1,) or whole.encoding != ir.F32:
        return None
    number = float(np.asarray(whole.read(0, 1)).reshape(-1)[0])
    if not (math.isfinite(number) and number > 0):
        raise layer.refusal("has a scale of the whole tensor that is no positive number")
    return _assembled(CT_NVFP4, (codes, scales, SharedRows(whole, rows)), (rows, columns))


def _mxfp4(layer: _Layer, group: _Group) -> ir.Tensor | None:
    """E2M1 with a power of two for 32 weights."""
    return _microscaling(layer, group, "weight_packed", CT_MXFP4)


def _mxfp8(layer: _Layer, group: _Group) -> ir.Tensor | None:
    """E4M3 with a power of two for 32 weights."""
    return _microscaling(layer, group, "weight", CT_MXFP8)


def _microscaling(layer: _Layer, group: _Group, name: str, encoding: ir.CodebookEncoding) -> ir.Tensor | None:
    codes, bits = layer.arrays.get(name), 4 if encoding is CT_MXFP4 else 8
    kind = "u8" if bits == 4 else "f8_e4m3"
    if codes is None or not _is_float(layer, group, name, kind, bits) or len(codes.shape) != 2:
        return None
    rows, columns = codes.shape[0], codes.shape[1] * 8 // bits
    fine = columns % 32 == 0 and layer.shape("weight_scale") == (rows, columns // 32)
    if not fine or layer.kind("weight_scale") != "u8" or group.weights.get("group_size") != 32:
        return None
    return _assembled(encoding, (codes, layer.arrays["weight_scale"]), (rows, columns))


def _is_float(layer: _Layer, group: _Group, name: str, kind: str, bits: int) -> bool:
    weights = group.weights
    said = (weights.get("type"), weights.get("num_bits"), weights.get("symmetric")) == ("float", bits, True)
    return said and layer.kind(name) == kind and "weight_zero_point" not in layer.arrays


def _assembled(encoding: ir.AnyBlockEncoding, parts: tuple[Any, ...], shape: tuple[int, int]) -> ir.Tensor:
    return ir.Tensor.of(AssembledRows(encoding, parts, partial(unpack, encoding)), shape)


_LAYOUTS = {
    "pack-quantized": _packed,
    "int-quantized": _integers,
    "float-quantized": _fp8,
    "nvfp4-pack-quantized": _nvfp4,
    "mxfp4-pack-quantized": _mxfp4,
    "mxfp8-quantized": _mxfp8,
}
