"""Folders in the layouts of GPTQ and AWQ, laid out in full before a weight is read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from phiconv import ir
from phiconv._version import __version__
from phiconv_formats.folders.companions import json_bytes
from phiconv_formats.server.folder import entries_of, lay_out, output_tensors, unquantized
from phiconv_formats.server.gptq_packing import awq_entry, gptq_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.folders.shards import Entry
    from phiconv_formats.shared.output import OutputTensor, Package, RuntimeSettings

__all__ = ["AwqWriter", "GptqWriter"]


class GptqWriter:
    """The writer of GPTQ folders (see `phiconv_formats.Writer`)."""

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
        entries = entries_of(tensors, encodings, gptq_entry)
        config = _gptq_config(entries)
        others = {"quantize_config.json": json_bytes(config)} if config else {}
        size = split_max_size
        return lay_out(
            model, entries, config, recipe=recipe, method="gptq", split_max_size=size, others=others
        )


class AwqWriter:
    """The writer of AWQ folders (see `phiconv_formats.Writer`)."""

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
        entries = entries_of(tensors, encodings, awq_entry)
        config, size = _awq_config(entries), split_max_size
        return lay_out(model, entries, config, recipe=recipe, method="awq", split_max_size=size)


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
