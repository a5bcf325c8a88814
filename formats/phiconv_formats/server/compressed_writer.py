"""A compressed-tensors folder, laid out in full before a weight is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from phiconv import ir
from phiconv.ir.server import scheme_of
from phiconv_formats.server.compressed_packing import entry
from phiconv_formats.server.folder import entries_of, lay_out, output_tensors, unquantized
from phiconv_formats.server.schemes import SCHEMES, weight_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Model
    from phiconv_formats.folders.shards import Entry
    from phiconv_formats.shared.output import OutputTensor, Package, RuntimeSettings

__all__ = ["CompressedTensorsWriter", "quantization_config"]

_VERSION = "0.19.0"
"""Of compressed-tensors, whose format it is."""

_ROUTERS = "re:.*\\.(gate|router)$"
"""The hub's name, and that of transformers 5."""

# Whose rows a runtime joins: they share the scale of the whole tensor.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


class CompressedTensorsWriter:
    """The writer of compressed-tensors folders (see `phiconv_formats.Writer`)."""

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
        entries = _sharing_scales(entries_of(tensors, encodings, entry))
        return lay_out(
            model,
            entries,
            quantization_config(entries),
            recipe=recipe,
            method="compressed-tensors",
            split_max_size=split_max_size,
        )


def _sharing_scales(entries: Sequence[Entry]) -> list[Entry]:
    """Tells the entries that need a scale of the whole tensor which tensors it follows from."""
    by_name = {e.output.name: e.output.tensor for e in entries}

    def tensors(name: str) -> tuple[ir.Tensor, ...]:
        path, _, last = name.removesuffix(".weight").rpartition(".")
        fused = next((names for names in _FUSED if last in names), (last,))
        found = (by_name.get(f"{path}.{other}.weight") for other in fused)
        return tuple(tensor for tensor in found if tensor is not None)

    return [
        replace(e, scaled_with=tensors(e.output.name))
        if isinstance(e.encoding, ir.CodebookEncoding)
        and not e.encoding.global_scale
        and not ir.same_meaning(e.encoding, e.output.tensor.encoding)
        else e
        for e in entries
    ]


def quantization_config(entries: Sequence[Entry]) -> dict[str, Any]:
    """The object of config.json; {} where nothing is quantized.

    The scheme of most matrices is that of all linear layers, and the others are there by name.
    """
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    columns: dict[str, set[int]] = {}
    for each in entries:
        columns.setdefault(each.encoding.name, set()).add(each.output.tensor.columns)
    for each in entries:
        if scheme_of(each.encoding):
            # Rows as long as the groups of others are no reason to call theirs channels.
            channel = columns[each.encoding.name] == {each.encoding.block_size}
            group = _group(each.encoding, channel=channel)
            _, names = groups.setdefault(repr(group), (group, []))
            names.append(each.output.name.removesuffix(".weight"))
    if not groups:
        return {}
    usual, *others = sorted(groups.values(), key=lambda found: -len(found[1]))
    made = [usual[0] | {"targets": ["Linear"]}, *(group | {"targets": names} for group, names in others)]
    formats = {group["format"] for group in made}
    floats = {e.output.name.removesuffix(".weight"): e.output.role for e in entries}
    routers = [p for p in unquantized(entries) if (role := floats[p]) is not None and role.name == "router"]
    paths = [path for path in unquantized(entries) if path not in routers]
    return {
        "config_groups": {f"group_{n}": dict(sorted(group.items())) for n, group in enumerate(made)},
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": ["lm_head", *([_ROUTERS] if routers else []), *paths],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": _VERSION,
    }


def _group(encoding: ir.Encoding, *, channel: bool) -> dict[str, Any]:
    scheme = SCHEMES[scheme_of(encoding)]
    return {
        "format": scheme.layout,
        "input_activations": dict(scheme.activations) if scheme.activations else None,
        "output_activations": None,
        "weights": weight_arguments(encoding, channel=channel),
    }
