"""A PyTorch checkpoint as an archive of tensors, in either form, whole or in shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv.errors import MalformedFileError, UnsupportedModelError, printable
from phiconv_formats.pytorch import legacy
from phiconv_formats.pytorch.machine import run
from phiconv_formats.pytorch.opcodes import Stream
from phiconv_formats.pytorch.records import TensorRecord
from phiconv_formats.pytorch.storage import Region, itemsize, tensor_of
from phiconv_formats.pytorch.zip_archive import read_directory, read_entry
from phiconv_formats.shared.files import InputFile
from phiconv_formats.shared.safetensors import Archive, open_sharded

if TYPE_CHECKING:
    from os import PathLike

    from phiconv import ir

__all__ = ["open_pytorch", "open_pytorch_sharded"]

_MAX_PICKLE = 16 << 20
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # where training scripts put the weights
_MAX_WRAPPERS = 4


def open_pytorch(path: str | PathLike[str]) -> Archive:
    """Opens one file and checks all that is said about its tensors; reads no tensor.

    Raises:
        UnsafePickleError: It asks for anything but tensors.
        MalformedFileError: It does not follow the format.
        UnsupportedModelError: A form of file that phiconv does not read.
    """
    file = InputFile(path)
    start = file.read_bytes(0, min(file.size, 512))
    if start.startswith(b"PK\3\4"):
        records, regions = _open_zip(file)
    elif start.startswith(b"\x80"):
        records, regions = _open_legacy(file)
    elif start[257:262] == b"ustar":
        message = "a PyTorch checkpoint in its first form, a tar archive"
        raise UnsupportedModelError(message, path=file.path, hint="save it again as .safetensors")
    else:
        raise MalformedFileError(
            "not a PyTorch checkpoint", path=file.path, at="byte 0", hint="the download may be incomplete"
        )
    tensors = {name: _tensor(record, regions, name) for name, record in records.items()}
    return Archive(file.path, tensors, {}, (file,))


def open_pytorch_sharded(index_path: str | PathLike[str]) -> Archive:
    """Opens all shards that a ``pytorch_model.bin.index.json`` names; see `safetensors.open_sharded`."""
    return open_sharded(index_path, open_pytorch)


def _open_zip(file: InputFile) -> tuple[dict[str, TensorRecord], dict[str, Region]]:
    entries = read_directory(file)
    roots = {name.partition("/")[0] for name in entries}
    root = min(roots, default="")
    if len(roots) != 1 or f"{root}/data.pkl" not in entries:
        message = "not a PyTorch checkpoint: a zip archive without one data.pkl"
        hint = "if it is an archive of a model's files, unpack it"
        raise MalformedFileError(message, path=file.path, hint=hint)
    if f"{root}/constants.pkl" in entries or any(name.startswith(f"{root}/code/") for name in entries):
        message = "a TorchScript archive: it holds a program and not only weights"
        raise UnsupportedModelError(message, path=file.path, hint="save its state dict as .safetensors")
    pickled = read_entry(file, entries[f"{root}/data.pkl"], _MAX_PICKLE)
    stream = Stream(pickled, file.path, "data.pkl")
    content = run(stream)
    if content.end != len(pickled):
        raise stream.fail(f"{len(pickled) - content.end} bytes follow the end of the pickle", content.end)
    order = b"little"
    if (entry := entries.get(f"{root}/byteorder")) is not None:
        order = read_entry(file, entry, 16)
    if order not in {b"little", b"big"}:
        raise MalformedFileError("neither little nor big", path=file.path, at=f"entry {root}/byteorder")
    records = _find_tensors(content.value, file)
    regions = {}
    for key in {record.storage.key for record in records.values()}:
        if (entry := entries.get(f"{root}/data/{key}")) is None:
            raise MalformedFileError("is missing", path=file.path, at=f"storage {printable(key)}")
        regions[key] = Region(file, entry.offset, entry.size, big_endian=order == b"big", entry=entry)
    return records, regions


def _open_legacy(file: InputFile) -> tuple[dict[str, TensorRecord], dict[str, Region]]:
    content, keys, at = legacy.read_pickles(file, _MAX_PICKLE)
    records = _find_tensors(content.value, file)
    regions = legacy.find_storages(file, keys, at, content.storages)
    for key in content.storages:
        if key not in regions:
            raise MalformedFileError("is missing", path=file.path, at=f"storage {printable(key)}")
    return records, regions


def _find_tensors(content: Any, file: InputFile) -> dict[str, TensorRecord]:
    """The tensors of the state dict, which may stand inside a dict of a training script."""
    for _ in range(_MAX_WRAPPERS):
        inner = [
            content[key] for key in _WRAPPERS if type(content) is dict and type(content.get(key)) is dict
        ]
        if not inner:
            break
        content = inner[0]
    if type(content) is dict:
        found = {n: t for n, t in content.items() if type(n) is str and isinstance(t, TensorRecord)}
        if found:
            return found
    raise MalformedFileError(
        "there is no dict of tensors in this file", path=file.path, hint="save the model's state dict"
    )


def _tensor(record: TensorRecord, regions: dict[str, Region], name: str) -> ir.Tensor:
    storage, region = record.storage, regions[record.storage.key]
    size = storage.count * itemsize(storage.encoding)
    if size != region.size:
        message = f"speaks of a storage of {size} bytes, which has {region.size}"
        raise MalformedFileError(message, path=region.file.path, at=f"tensor {printable(name)}")
    return tensor_of(record, region, name)
