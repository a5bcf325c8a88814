"""The zip archive of a PyTorch checkpoint, read more strictly than the format asks (PKWARE's APPNOTE.TXT).

torch.save stores its entries one after the other, uncompressed, and the directory behind them. Nothing else
passes: so there is no zip bomb, no entry inside another, and no second way to read the file.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from phiconv.errors import MalformedFileError, UnsupportedModelError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phiconv_formats.shared.files import InputFile

__all__ = ["ZipEntry", "check_crc", "read_directory", "read_entry"]

_MAX_ENTRIES = 1 << 16
_MAX_DIRECTORY = 16 << 20

# signature, disk, first disk, entries on this disk, entries, bytes, offset, bytes of the comment
_END = struct.Struct("<4s4H2IH")
# signature, bytes that follow, version made by, version needed, disk, first disk, entries (2), bytes, offset
_END64 = struct.Struct("<4sQ2H2I4Q")
# signature, disk, offset of the record above, number of disks
_LOCATOR = struct.Struct("<4sIQI")
# signature, versions (2), flags, method, time, date, CRC, packed and unpacked bytes, lengths of name, extra
# field and comment, disk, attributes (2), offset
_CENTRAL = struct.Struct("<4s6H3I5H2I")
# signature, version, flags, method, time, date, CRC, packed and unpacked bytes, lengths of name and extra
_LOCAL = struct.Struct("<4s5H3I2H")

_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_DESCRIPTORS = (0, 12, 16, 20, 24)  # bytes that may follow an entry: its checksum and sizes once more
_ZIP64 = 1  # the extra field that has the numbers too large for their fields
_LARGE = 0xFFFFFFFF


class ZipEntry(NamedTuple):
    """A stored entry.

    Attributes:
        name: Its name; never used as a path.
        offset: The byte of the file where its content starts.
        size: Bytes of the content.
        crc: CRC-32 of the content; 0 where torch was told to compute none.
    """

    name: str
    offset: int
    size: int
    crc: int


def read_directory(file: InputFile) -> dict[str, ZipEntry]:
    """Every entry by name.

    Raises:
        MalformedFileError: The archive is not laid out as torch.save does it.
        UnsupportedModelError: An entry is compressed or encrypted.
    """
    count, size, offset = _find_directory(file)
    data = file.read_bytes(offset, size)
    entries: dict[str, ZipEntry] = {}
    expected = 0
    for entry, header in sorted(_central_entries(file, data, count), key=lambda pair: pair[1]):
        gap = header - expected
        if gap not in _DESCRIPTORS or (gap and not entries):
            raise _fail(file, "overlaps another entry, or leaves a gap before it", entry.name)
        if entry.name in entries:
            raise _fail(file, "is there twice", entry.name)
        start = _content_start(file, entry, header)
        expected = start + entry.size
        if expected > offset:
            raise _fail(file, f"ends at byte {expected}, inside the directory", entry.name)
        entries[entry.name] = entry._replace(offset=start)
    if offset - expected not in _DESCRIPTORS:
        raise _fail(file, "bytes between the entries and the directory that no entry owns")
    return entries


def read_entry(file: InputFile, entry: ZipEntry, limit: int) -> bytes:
    """The content of a small entry, checked against its CRC.

    Raises:
        MalformedFileError: It is larger than ``limit``, or damaged.
    """
    if entry.size > limit:
        raise _fail(file, f"has {entry.size} bytes, and such an entry has at most {limit}", entry.name)
    check_crc(file, entry)
    return file.read_bytes(entry.offset, entry.size)


def check_crc(file: InputFile, entry: ZipEntry) -> None:
    """Compares all bytes of an entry with its checksum.

    Raises:
        MalformedFileError: They do not agree.
    """
    if not entry.crc:
        return
    crc, buffer = 0, bytearray(min(entry.size, 1 << 20))
    for at in range(0, entry.size, 1 << 20):
        view = memoryview(buffer)[: min(entry.size - at, 1 << 20)]
        file.read_into(entry.offset + at, view)
        crc = zlib.crc32(view, crc)
    if crc != entry.crc:
        raise _fail(file, f"the CRC is {crc:08x}, where {entry.crc:08x} is expected: damaged", entry.name)


def _find_directory(file: InputFile) -> tuple[int, int, int]:
    """Number of entries, bytes of the directory, and where it starts; it ends where the end record starts."""
    if file.size < _END.size:
        raise _fail(file, f"it has {file.size} bytes: it is truncated")
    at = file.size - _END.size
    signature, disk, first, here, count, size, offset, comment = _END.unpack(file.read_bytes(at, _END.size))
    if signature != b"PK\5\6" or comment:
        raise _fail(file, "the file does not end with the directory of a zip archive: it is truncated")
    numbers = disk, first, here, count, size, offset
    locator = _LOCATOR.size
    if at >= locator + _END64.size:
        mark, _, where, _ = _LOCATOR.unpack(file.read_bytes(at - locator, locator))
        if mark == b"PK\6\7":
            at -= locator + _END64.size
            mark, length, _, _, *wide = _END64.unpack(file.read_bytes(at, _END64.size))
            if mark != b"PK\6\6" or where != at or length != _END64.size - 12 or not _agree(numbers, wide):
                raise _fail(file, "the two ends of the directory contradict each other")
            disk, first, here, count, size, offset = wide
    if disk or first or here != count:
        raise _fail(file, "an archive of several disks")
    if count > _MAX_ENTRIES or size > _MAX_DIRECTORY:
        raise _fail(file, f"a directory of {count} entries and {size} bytes")
    if offset + size != at:
        raise _fail(file, f"a directory at byte {offset} of {size} bytes does not end at byte {at}")
    return count, size, offset


def _agree(narrow: tuple[int, ...], wide: list[int]) -> bool:
    """Whether each number of the old record is that of the new one, or says that it stands there."""
    limits = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, _LARGE, _LARGE)
    return all(a in {b, limit} for a, b, limit in zip(narrow, wide, limits, strict=True))


def _central_entries(file: InputFile, data: bytes, count: int) -> Iterator[tuple[ZipEntry, int]]:
    """Each entry of the directory, and where its local header is."""
    at = 0
    for _ in range(count):
        if len(data) - at < _CENTRAL.size:
            raise _fail(file, "the directory ends within an entry")
        fields = _CENTRAL.unpack_from(data, at)
        signature, _, _, flags, method, _, _, crc, packed, size = fields[:10]
        name_length, extra_length, comment_length, disk, _, _, header = fields[10:]
        names = at + _CENTRAL.size
        extras, at = names + name_length, names + name_length + extra_length + comment_length
        if signature != b"PK\1\2" or at > len(data):
            raise _fail(file, "the directory is damaged")
        name = _name(file, data[names:extras])
        size, packed, header = _wide(file, name, data[extras : extras + extra_length], (size, packed, header))
        if flags & _ENCRYPTED:
            raise _unsupported(file, "is encrypted", name)
        if method or packed != size:
            raise _unsupported(
                file, "is compressed, as in TorchScript archives; torch.save never does it", name
            )
        if disk:
            raise _fail(file, "is on another disk", name)
        yield ZipEntry(name, 0, size, crc), header
    if at != len(data):
        raise _fail(file, "the directory has more than its entries")


def _wide(file: InputFile, name: str, extra: bytes, numbers: tuple[int, int, int]) -> tuple[int, int, int]:
    """Unpacked bytes, packed bytes, offset: those that did not fit are in an extra field, in this order."""
    missing = [i for i, number in enumerate(numbers) if number == _LARGE]
    if not missing:
        return numbers
    at, result = 0, list(numbers)
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64 and 8 * len(missing) <= length <= len(extra) - at - 4:
            for i, value in zip(missing, struct.unpack_from(f"<{len(missing)}Q", extra, at + 4), strict=True):
                result[i] = value
            return result[0], result[1], result[2]
        at += 4 + length
    raise _fail(file, "has sizes that stand nowhere", name)


def _content_start(file: InputFile, entry: ZipEntry, header: int) -> int:
    """Where the content starts, by the local header; it must say the same as the directory."""
    fields = _LOCAL.unpack(file.read_bytes(header, _LOCAL.size))
    signature, _, flags, method, _, _, crc, packed, size = fields[:9]
    name_length, extra_length = int(fields[9]), int(fields[10])
    name = file.read_bytes(header + _LOCAL.size, name_length)
    # A checksum and sizes of 0 stand behind the content instead, and in the directory.
    sizes = {0, entry.size, _LARGE}
    same = name == entry.name.encode() and crc in {0, entry.crc} and size in sizes and packed in sizes
    if signature != b"PK\3\4" or not same or method or flags & _ENCRYPTED:
        raise _fail(file, "is called or stored otherwise than the directory says", entry.name)
    return header + _LOCAL.size + name_length + extra_length


def _name(file: InputFile, data: bytes) -> str:
    try:
        name = data.decode("utf-8")
    except UnicodeDecodeError:
        raise _fail(file, "a name that is not valid UTF-8") from None
    if (
        not name.isprintable()
        or set(name) & set("\\:")
        or not all(name.split("/"))
        or ".." in name.split("/")
    ):
        raise _fail(file, "is no name of an entry", name)
    return name


def _fail(file: InputFile, message: str, name: str = "") -> MalformedFileError:
    at = f"entry {printable(name)}" if name else ""
    return MalformedFileError(
        message if name else f"not a zip archive of torch.save: {message}",
        path=file.path,
        at=at,
        hint="download it again, or save it again as .safetensors",
    )


def _unsupported(file: InputFile, message: str, name: str) -> UnsupportedModelError:
    hint = "save it again as .safetensors"
    return UnsupportedModelError(message, path=file.path, at=f"entry {printable(name)}", hint=hint)
