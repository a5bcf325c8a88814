"""Hostile files around the pickle of a PyTorch checkpoint: the older form, and zip archives."""

from __future__ import annotations

import struct
import zipfile

import pytest

from phiconv.errors import InputError, MalformedFileError, UnsupportedModelError
from phiconv_formats.pytorch import open_pytorch

# {"w": a float32 vector of four}
STATE = (
    b"\x80\x02}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
    b"X\1\0\0\x000X\3\0\0\0cpuK\4tQK\0K\4\x85K\1\x85\x89ccollections\nOrderedDict\n)RtRs."
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a PyTorch checkpoint"),
        (b"<svg>", "not a PyTorch checkpoint"),
        (b"MZ" + bytes(600), "not a PyTorch checkpoint"),
        (b"pickles".ljust(257, b"\0") + b"ustar  \0" + bytes(300), "in its first form, a tar archive"),
        (b"\x80\x02}.", "a pickle, and not one of torch.save"),
        (b"\x80\x02K\1.\x80\x02K\1.", "a pickle, and not one of torch.save"),
        (b"\x80\x02cos\nsystem\n.", "it asks for os.system"),
    ],
)
def test_other_files(tmp_path, refused, content, says):
    (tmp_path / "x.bin").write_bytes(content)
    refused(open_pytorch, tmp_path / "x.bin", says=says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d[:-1], "a storage ends at byte"),
        (lambda d: d + b"x", "1 bytes follow the last storage"),
        (lambda d: d[:-24] + struct.pack("<q", 5) + d[-16:], "a storage of 5 elements, where 4"),
        (lambda d: d[:-24] + struct.pack("<q", -4) + d[-16:], "a storage of -4 elements"),
        (lambda d: d[:-24], "are needed: it is truncated"),
        (lambda d: d.replace(b"J\xe9\x03\0\0", b"J\xe8\x03\0\0", 1), "of another version"),
        (lambda d: d.replace(b"little_endian\x88", b"little_endian\x89"), "of another version or machine"),
        (lambda d: d.replace(b"](X\1\0\0\x000e.", b"](X\1\0\0\x001e."), "a storage that nothing uses"),
        (lambda d: d.replace(b"](X\1\0\0\x000e.", b"}."), "expected a list of storages"),
    ],
)
def test_older_form(make_pytorch, tmp_path, refused, change, says):
    path = make_pytorch.write_legacy(tmp_path / "x.bin", STATE, {"0": (4, bytes(16))})
    assert open_pytorch(path).tensors["w"].shape == (4,)
    data = path.read_bytes()
    assert change(data) != data
    path.write_bytes(change(data))
    refused(open_pytorch, path, says=says)


# Changes of a good archive, and what the message says.
ZIP_BYTES = {
    "Z7_prefix": (lambda d: b"MZ" + d, "not a PyTorch checkpoint"),
    "Z7_shifted": (lambda d: d[:4] + d, "does not end at byte"),
    "behind_the_end": (lambda d: d + b"x", "does not end with the directory"),
    "cut_by_1": (lambda d: d[:-1], "does not end with the directory"),
    "cut_to_30": (lambda d: d[:30], "does not end with the directory"),
    "cut_to_4": (lambda d: d[:4], "it has 4 bytes"),
    "Z8_checksum": (lambda d: d.replace(STATE, STATE[:-1] + b"}"), "the CRC is"),
    "Z4_another_name": (
        lambda d: d.replace(b"a/data.pkl", b"a/data.pkx", 1),
        "otherwise than the directory says",
    ),
    "Z6_local_flags": (
        lambda d: d.replace(b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1", 1),
        "is called or stored otherwise",
    ),
    "Z6_encrypted": (lambda d: d.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"), "is encrypted"),
    "damaged_directory": (lambda d: d.replace(b"PK\1\2", b"PK\1\3", 1), "the directory is damaged"),
    "count_of_entries": (lambda d: d[:-14] + b"\xff\xff\xff\xff" + d[-10:], "directory"),
    "disks": (lambda d: d[:-12] + b"\xff\xff" + d[-10:], "an archive of several disks"),
    "directory_size": (lambda d: d[:-10] + b"\xff\xff\xff\xff" + d[-6:], "a directory"),
    "directory_offset": (lambda d: d[:-6] + bytes(4) + d[-2:], "does not end at byte"),
}


class TestZip:
    def write(self, path, entries, method=zipfile.ZIP_STORED, comment=b""):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.comment = comment
            for name, data in entries:
                archive.writestr(name, data)
        return path

    GOOD = (("a/data.pkl", STATE), ("a/data/0", bytes(16)))

    def test_it_is_good(self, tmp_path):
        assert open_pytorch(self.write(tmp_path / "x", self.GOOD)).tensors["w"].shape == (4,)

    @pytest.mark.parametrize(
        ("entries", "says"),
        [
            ((*GOOD, ("../x", b"")), "entry ../x: is no name of an entry"),
            ((*GOOD, ("/abs", b"")), "is no name of an entry"),
            ((*GOOD, ("a\\b", b"")), "is no name of an entry"),
            ((*GOOD, ("C:/x", b"")), "is no name of an entry"),
            ((*GOOD, ("a/\x1b[2J", b"")), r"entry a/\x1b[2J: is no name"),
            ((*GOOD, ("b/data.pkl", b"")), "a zip archive without one data.pkl"),
            (GOOD[1:], "a zip archive without one data.pkl"),
            ((*GOOD, ("a/constants.pkl", b"")), "a TorchScript archive"),
            ((*GOOD, ("a/code/x.py", b"")), "a TorchScript archive"),
            ((*GOOD, ("a/byteorder", b"middle")), "neither little nor big"),
            ((*GOOD, ("a/byteorder", bytes(17))), "such an entry has at most 16"),
            ((GOOD[0], ("a/data/0", bytes(17))), "of a storage of 16 bytes, which has 17"),
        ],
        ids=(
            "Z4_parent Z4_absolute Z4_backslash Z4_drive Z4_escape Z9_two_pickles Z9_no_pickle "
            "P14_constants P14_code P15_byteorder P15_long_byteorder P18_storage"
        ).split(),
    )  # fmt: skip
    def test_entries(self, tmp_path, refused, entries, says):
        refused(open_pytorch, self.write(tmp_path / "x", entries), says=says)

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_z5_duplicate_names(self, tmp_path, refused):
        path = self.write(tmp_path / "x", (*self.GOOD, ("a/data.pkl", b"")))
        refused(open_pytorch, path, says="entry a/data.pkl: is there twice", kind=MalformedFileError)

    def test_z1_zip_bomb(self, tmp_path, refused):
        entries = (self.GOOD[0], ("a/data/0", bytes(50_000_000)))
        path = self.write(tmp_path / "x", entries, zipfile.ZIP_DEFLATED)
        refused(open_pytorch, path, says="is compressed", kind=UnsupportedModelError)

    def test_z_a_huge_pickle(self, tmp_path, refused):
        path = self.write(tmp_path / "x", (("a/data.pkl", bytes(17 << 20)),))
        refused(open_pytorch, path, says="such an entry has at most 16777216", kind=MalformedFileError)

    @pytest.mark.parametrize("name", ZIP_BYTES)
    def test_bytes(self, tmp_path, refused, name):
        change, says = ZIP_BYTES[name]
        path = self.write(tmp_path / "x", self.GOOD)
        data = path.read_bytes()
        assert change(data) != data
        path.write_bytes(change(data))
        refused(open_pytorch, path, says=says)

    def test_z3_overlapping_entries(self, tmp_path, refused):
        path = self.write(tmp_path / "x", (*self.GOOD, ("a/data/1", bytes(16))))
        data = bytearray(path.read_bytes())
        second = data.rfind(b"PK\1\2")
        first = data.rfind(b"PK\1\2", 0, second)
        data[second + 42 : second + 46] = data[first + 42 : first + 46]
        path.write_bytes(data)
        refused(open_pytorch, path, says="", kind=MalformedFileError)

    def test_z2_sizes_of_zip64(self, tmp_path, refused):
        path = self.write(tmp_path / "x", self.GOOD)
        data = bytearray(path.read_bytes())
        at = data.rfind(b"PK\1\2")
        data[at + 20 : at + 28] = b"\xff" * 8
        path.write_bytes(data)
        refused(open_pytorch, path, says="entry a/data/0: has sizes that stand nowhere")

    def test_every_truncation_is_refused(self, tmp_path):
        path = self.write(tmp_path / "x", self.GOOD)
        data = path.read_bytes()
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(InputError):
                open_pytorch(path)
