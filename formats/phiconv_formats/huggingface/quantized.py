"""Folders that another tool has quantized: config.json names the method, and that says who reads them.

The method stands in ``quantization_config.quant_method``, and in older folders in a file beside. Whoever
knows it puts the arrays of every quantized matrix together again, under the names that the hub's checkpoints
have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from phiconv.spelling import folded
from phiconv_formats.folders.model_folder import optional_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from phiconv.ir.model import Checkpoint

__all__ = ["METHODS", "Assembler", "assembled", "is_named"]


class Assembler(Protocol):
    """Puts the matrices of a quantized folder together; reads no weight."""

    def __call__(self, folder: Checkpoint, quantization: Mapping[str, Any], /) -> Checkpoint:
        """The folder with ``stored``, ``tensors`` and ``format`` as the method has them.

        Args:
            folder: Opened as if it were not quantized: ``stored`` has every array of its files.
            quantization: What ``quantization_config`` says, nothing of which has been checked.

        Returns:
            The folder as it is where no array is a quantized matrix's: a quantization that is only said.

        Raises:
            MalformedFileError: Arrays that do not fit each other or the configuration.
            UnsupportedModelError: A variant that is not read.
        """


def _awq() -> Assembler:
    from phiconv_formats.quantized_folders.awq import assemble

    return assemble


def _bitsandbytes() -> Assembler:
    from phiconv_formats.quantized_folders.bitsandbytes import assemble

    return assemble


def _compressed_tensors() -> Assembler:
    from phiconv_formats.server.compressed_reader import as_checkpoint

    return as_checkpoint


def _fp8() -> Assembler:
    from phiconv_formats.quantized_folders.fp8 import assemble

    return assemble


def _gptq() -> Assembler:
    from phiconv_formats.quantized_folders.gptq import assemble

    return assemble


def _torchao() -> Assembler:
    from phiconv_formats.quantized_folders.torchao import assemble

    return assemble


def _mxfp4() -> Assembler:
    from phiconv_formats.quantized_folders.mxfp4 import assemble

    return assemble


def _modelopt() -> Assembler:
    from phiconv_formats.quantized_folders.modelopt import assemble

    return assemble


METHODS: dict[str, Callable[[], Assembler]] = {
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
    "torchao": _torchao,
}
"""Imports and returns who knows a method, by its name."""


_BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files that say it where config.json does not, and the method that each means where it names none."""


def assembled(folder: Checkpoint) -> Checkpoint:
    """A folder with its quantized matrices as the model has them; as it is where no known method is named.

    Raises:
        InputError: See `Assembler`.
    """
    path, said, method = _said(folder)
    if (known := _known(method)) is None:
        return folder
    made = known()(replace(folder, config_path=path), said)
    return replace(made, config_path=folder.config_path)


def is_named(folder: Checkpoint) -> bool:
    """Whether a folder says that it is quantized by a known method."""
    return _known(_said(folder)[2]) is not None


def _known(method: object) -> Callable[[], Assembler] | None:
    return METHODS.get(folded(method)) if isinstance(method, str) else None


def _said(folder: Checkpoint) -> tuple[Path | None, dict[str, Any], object]:
    """The file that says how a folder is quantized, what it says, and the method that it names."""
    said, path = (folder.config or {}).get("quantization_config"), folder.config_path
    if isinstance(said, dict):
        return path, said, said.get("quant_method")
    if said is None and path is not None:
        for name, usual in _BESIDE.items():
            beside = path.with_name(name)
            if (found := optional_json(beside)) is not None:
                return beside, found, found.get("quant_method", usual)
    return path, {}, None
