"""What was written as safetensors, opened with the library that others open it with.

The library checks the header, and that the tensors cover the file; it maps the file and reads no weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.errors import OutputError
from phiconv_formats.shared.safetensors import METADATA_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    _Kind: TypeAlias = tuple[str, tuple[int, ...]]

__all__ = ["check_written", "refusal"]

_BUG = "this is a bug in phiconv; please report it"


def check_written(
    path: Path,
    *,
    name: str,
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str],
) -> None:
    """Checks that a file holds what was laid out.

    Args:
        path: The file, complete.
        name: What it will be called; errors say this.
        tensors: What `lay_out` was given.
        metadata: Likewise.

    Raises:
        OutputError: It holds something else, or cannot be opened.
    """
    found, found_metadata = _open(path, name)
    expected = {tensor: (dtype, shape) for tensor, dtype, shape in tensors}
    for tensor in {**expected, **found}:
        wanted, stored = expected.get(tensor), found.get(tensor)
        if wanted != stored:
            message = f"{_text(stored)} is in the file, where {_text(wanted)} was laid out"
            raise OutputError(message, path=name, at=f"tensor {tensor}", hint=_BUG)
    if found_metadata != metadata:
        message = f"{found_metadata} is in the file, where {dict(metadata)} was laid out"
        raise OutputError(message, path=name, at=f"key {METADATA_KEY}", hint=_BUG)


def refusal(path: Path) -> str:
    """Why the library refuses a file; "" if it does not."""
    try:
        _open(path, path.name)
    except OutputError as error:
        return error.message
    return ""


def _open(path: Path, name: str) -> tuple[dict[str, _Kind], dict[str, str]]:
    """The dtype and shape of every tensor, and the metadata, as the library sees them."""
    import safetensors  # only these targets need it

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = ((tensor, file.get_slice(tensor)) for tensor in list(file.keys()))
            found = {tensor: (s.get_dtype(), tuple(s.get_shape())) for tensor, s in slices}
            return found, file.metadata() or {}
    except safetensors.SafetensorError as error:
        message = f"safetensors {safetensors.__version__} cannot read what was written: {error}"
        raise OutputError(message, path=name, hint=_BUG) from error
    except (OSError, MemoryError) as error:  # a limit of address space, or a file system that maps nothing
        message = f"cannot be mapped into memory, to check it: {error}"
        hint = "give a smaller --split-max-size, or another folder"
        raise OutputError(message, path=name, hint=hint) from error


def _text(kind: _Kind | None) -> str:
    return "nothing" if kind is None else f"{kind[0]} of shape {list(kind[1])}"
