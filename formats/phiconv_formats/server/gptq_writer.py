"""Folders in the layouts of GPTQ and AWQ, laid out in full before a weight is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phiconv import ir
from phiconv._version import __version__
from phiconv_formats.folders.companions import json_bytes
from phiconv_formats.server.folder import entries_of, lay_out, output_tensors, unquantized
from phiconv_formats.server.gptq_packing import awq_entry, gptq_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.folders.shards import Entry
    from phiconv_formats.shared.output import OutputTensor, Package, RuntimeSettings

__all__ = ["WordsWriter"]


@dataclass(frozen=True, slots=True)
class WordsWriter:
    """The writer of folders of one method (see `phiconv_formats.Writer`).

    Attributes:
        method: ``gptq`` or ``awq``.
    """

    method: str

    tensors = staticmethod(output_tensors)

    def package(
        self,
        model: Model,
        tensors: Sequence[OutputTensor],
        encodings: Sequence[ir.Encoding],
        *,
        file_name: str,  # noqa: ARG002 - the files of a folder have names of their own
        recipe: str,
        split_max_size: int | None = None,
        importance: ImportanceMatrix | None = None,  # noqa: ARG002 - nothing here weighs errors
        settings: RuntimeSettings | None = None,  # noqa: ARG002 - the file has no place for them
    ) -> Package:
        """Lays the whole output out; see `phiconv_formats.Writer`.

        Raises:
            UsageError: A split size that would make too many files.
        """
        entry, config_of, beside = _METHODS[self.method]
        entries = entries_of(tensors, encodings, entry)
        config = config_of(entries)
        return lay_out(
            model,
            entries,
            config,
            recipe=recipe,
            method=self.method,
            split_max_size=split_max_size,
            others={name: json_bytes(config) for name in beside if config},
        )


def _integers(entries: Sequence[Entry]) -> tuple[ir.BlockEncoding, int] | None:
    """The encoding that all quantized matrices have, and the size of its groups, -1 for a whole row."""
    for entry in entries:
        if isinstance(entry.encoding, ir.BlockEncoding):
            size = entry.encoding.block_size
            lengths = {
                e.output.tensor.columns == e.encoding.block_size
                for e in entries
                if isinstance(e.encoding, ir.BlockEncoding)
            }
            return entry.encoding, -1 if lengths == {True} else size
    return None


def _gptq_config(entries: Sequence[Entry]) -> dict[str, Any]:
    """What config.json and quantize_config.json say; {} where nothing is quantized."""
    if (found := _integers(entries)) is None:
        return {}
    encoding, group_size = found
    version = "gptq_v2" if encoding.name.startswith("gptq-v2") else "gptq"
    kept: dict[str, Any] = {f"-:^{re.escape(path)}$": {} for path in unquantized(entries)}
    return {
        "bits": encoding.bits,
        "group_size": group_size,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": version,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"phiconv:{__version__}"]},
        **({"dynamic": kept} if kept else {}),
    }


def _awq_config(entries: Sequence[Entry]) -> dict[str, Any]:
    """What config.json says; {} where nothing is quantized."""
    if (found := _integers(entries)) is None:
        return {}
    encoding, group_size = found
    return {
        "quant_method": "awq",
        "bits": encoding.bits,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": unquantized(entries) or None,
    }


_METHODS: dict[str, tuple[Callable[..., Entry], Callable[[Sequence[Entry]], dict[str, Any]], tuple[str, ...]]]
_METHODS = {
    "gptq": (gptq_entry, _gptq_config, ("quantize_config.json",)),
    "awq": (awq_entry, _awq_config, ()),
}
"""The arrays of a matrix, what config.json says, and files that say it once more."""
