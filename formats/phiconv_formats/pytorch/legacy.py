"""The form of checkpoints before PyTorch 1.6: five pickles in a row, then the storages.

A magic number, a version, facts about the machine, the object itself, and the keys of the storages in the
order in which they follow; before each stands the number of its elements. Numbers are little-endian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv.errors import MalformedFileError, UnsupportedModelError
from phiconv_formats.pytorch.machine import run
from phiconv_formats.pytorch.opcodes import Stream
from phiconv_formats.pytorch.storage import Region, itemsize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv_formats.pytorch.machine import Pickled
    from phiconv_formats.pytorch.records import StorageRecord
    from phiconv_formats.shared.files import InputFile

__all__ = ["find_storages", "read_pickles"]

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


def read_pickles(file: InputFile, limit: int) -> tuple[Pickled, list[str], int]:
    """The object, the keys of the storages in their order, and where the storages start.

    Args:
        file: The file.
        limit: Bytes in which the pickles must end.

    Raises:
        UnsafePickleError, MalformedFileError: See `machine.run`.
        UnsupportedModelError: A file of another version or of a big-endian machine.
    """
    stream = Stream(file.read_bytes(0, min(file.size, limit)), file.path)
    magic, at, _ = run(stream)
    if type(magic) is not int or magic != _MAGIC:
        raise MalformedFileError("a pickle, and not one of torch.save", path=file.path)
    version, at, _ = run(stream, at)
    machine, at, _ = run(stream, at)
    little = machine.get("little_endian") if type(machine) is dict else None
    if type(version) is not int or version != _VERSION or little is not True:
        message = "a PyTorch checkpoint of another version or machine"
        raise UnsupportedModelError(message, path=file.path, hint="save it again as .safetensors")
    content = run(stream, at)
    keys, at, _ = run(stream, content.end)
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
        raise stream.fail("expected a list of storages", at)
    return content, keys, at


def find_storages(
    file: InputFile, keys: list[str], at: int, records: Mapping[str, StorageRecord]
) -> dict[str, Region]:
    """Where each storage is.

    Args:
        file: The file.
        keys: The storages in their order.
        at: Where the first one starts.
        records: What the object says of each.

    Raises:
        MalformedFileError: The storages are not those that the object speaks of, or the file ends within.
    """

    def fail(message: str) -> MalformedFileError:
        return MalformedFileError(message, path=file.path, at=f"byte {at}", hint="download it again")

    result: dict[str, Region] = {}
    for key in keys:
        if key not in records:
            raise fail("a storage that nothing uses")
        record = records[key]
        count = int.from_bytes(file.read_bytes(at, 8), "little", signed=True)
        if count != record.count:
            raise fail(f"a storage of {count} elements, where {record.count} are expected")
        region = Region(file, at + 8, count * itemsize(record.encoding))
        at = region.offset + region.size
        if at > file.size:
            raise fail(f"a storage ends at byte {at} of {file.size}: it is truncated")
        result[key] = region
    if at != file.size:
        raise fail(f"{file.size - at} bytes follow the last storage")
    return result
