"""An MLX folder as a source: its arrays put together again, under the names that Hugging Face uses.

A quantized matrix is three arrays (two in the microscaling formats): ``<path>.weight`` holds codes in 32-bit
words, ``<path>.scales`` and ``<path>.biases`` a number per group. config.json says how many bits and which
groups; the shapes must agree.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from phiconv import ir
from phiconv.errors import MalformedFileError
from phiconv_formats.mlx.config import encoding_of
from phiconv_formats.mlx.packing import row_bytes, unpack
from phiconv_formats.mlx.vision import as_on_the_hub, hub_name
from phiconv_formats.shared.rows import AssembledRows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from phiconv.ir.model import Checkpoint

__all__ = ["as_checkpoint", "is_mlx"]

_EXPERTS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_SWITCH = ".block_sparse_moe.switch_mlp."


def is_mlx(stored: Mapping[str, ir.Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether these tensors are those of an MLX folder."""
    scaled = (name.removesuffix(".scales") for name in stored if name.endswith(".scales"))
    return metadata.get("format") == "mlx" or any(f"{base}.weight" in stored for base in scaled)


def as_checkpoint(folder: Checkpoint) -> Checkpoint:
    """An MLX folder that was opened as a Hugging Face one, with its matrices as the model has them.

    Raises:
        MalformedFileError: Arrays that do not fit each other or the configuration.
    """
    config = folder.config or {}
    gathered = _gather(folder.stored, config, folder.path)
    kind = config.get("model_type")
    named = {hub_name(kind, n): t for n, t in gathered.items()} if isinstance(kind, str) else gathered
    stored = {name: as_on_the_hub(name, tensor) for name, tensor in named.items()}
    return replace(folder, format="mlx", stored=stored, tensors=_named(stored))


def _gather(stored: Mapping[str, ir.Tensor], config: Mapping[str, Any], path: Path) -> dict[str, ir.Tensor]:
    """The tensors of an MLX folder, each quantized matrix as one.

    Args:
        stored: The arrays of its safetensors files.
        config: config.json.
        path: The folder, for messages.

    Raises:
        MalformedFileError: Arrays that do not fit each other or the configuration.
    """
    result: dict[str, ir.Tensor] = {}
    for name, tensor in stored.items():
        base, _, kind = name.rpartition(".")
        if kind in {"scales", "biases"} and f"{base}.weight" in stored:
            continue
        arrays = [stored[n] for n in (name, f"{base}.scales", f"{base}.biases") if n in stored]
        if kind == "weight" and len(arrays) > 1:
            result[name] = _matrix(base, arrays, config, path)
        else:
            result[name] = tensor
    return result


def _matrix(base: str, arrays: list[ir.Tensor], config: Mapping[str, Any], path: Path) -> ir.Tensor:
    quantization = config.get("quantization") or config.get("quantization_config")
    own = quantization.get(base, quantization) if isinstance(quantization, dict) else None
    if not isinstance(own, dict):
        raise MalformedFileError(
            "is quantized, and config.json does not say how", path=path, at=f"tensor {base}.weight"
        )
    encoding = encoding_of(own, arrays[1].encoding)
    if encoding is None:
        raise MalformedFileError(
            f"is quantized in a way that phiconv does not know ({own})", path=path, at=f"tensor {base}.weight"
        )
    words, bits = arrays[0].columns, own["bits"]
    columns = 32 * words // bits
    expected = row_bytes(encoding, columns) if columns % encoding.block_size == 0 else ()
    stored = tuple(round(a.columns * a.encoding.bits_per_weight / 8) for a in arrays)
    shapes = {a.shape[:-1] for a in arrays}
    if len(shapes) != 1 or len(arrays[0].shape) < 2 or stored != expected:
        shown = ", ".join(str(list(a.shape)) for a in arrays)
        raise MalformedFileError(
            f"arrays of shapes {shown} do not fit {own}", path=path, at=f"tensor {base}.weight"
        )
    source = AssembledRows(encoding, tuple(arrays), partial(unpack, encoding, columns))
    return ir.Tensor.of(source, (*arrays[0].shape[:-1], columns))


def _named(tensors: Mapping[str, ir.Tensor]) -> dict[str, ir.Tensor]:
    """The same under the names of Hugging Face checkpoints: mlx-lm stacks the experts of a layer."""
    result: dict[str, ir.Tensor] = {}
    for name, tensor in tensors.items():
        layer, switch, rest = name.partition(_SWITCH)
        part = _EXPERTS.get(rest.removesuffix(".weight"))
        if not switch or part is None or len(tensor.shape) != 3:
            result[name] = tensor
            continue
        experts, rows, columns = tensor.shape
        matrix = tensor.reshape((experts * rows, columns))
        for e in range(experts):
            expert = matrix.slice_rows(e * rows, (e + 1) * rows)
            result[f"{layer}.block_sparse_moe.experts.{e}.{part}.weight"] = expert
    return result
