"""Hostile GGUF files: each is refused with one line that names the file and what is wrong in it."""

from __future__ import annotations

import os
import struct
import sys

import pytest

from phiconv.errors import InputError, MalformedFileError, MissingFileError
from phiconv_formats.gguf.reader import open_gguf
from phiconv_formats.gguf.values import (
    GgufValue,
    ValueType,
    serialize_header,
    serialize_kv,
    serialize_tensor_info,
)

HUGE = 1 << 60


def text(value):
    return struct.pack("<Q", len(value)) + value


def kv(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def array(kind, count, items=b""):
    return struct.pack("<IQ", kind, count) + items


def tensor(name=b"w", dims=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def model(kvs=(), tensors=(), data=4096, n_kv=None, n_tensors=None):
    """A file of raw records; the counts can lie."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(kvs) if n_kv is None else n_kv)
    header = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(kvs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


def nested(depth):
    return b"".join(array(9, 1) for _ in range(depth)) + array(0, 1, b"\0")


FILES = {
    "G1_nothing": (b"", "not a GGUF file"),
    "G1_three_bytes": (b"GGU", "not a GGUF file"),
    "G1_magic": (b"GGML" + bytes(60), "byte 0: not a GGUF file: it starts with b'GGML'"),
    "G1_magic_of_escapes": (b"\x1b[2J" + bytes(60), "not a GGUF file"),
    "G1_reversed_magic": (b"FUGG" + bytes(60), "not a GGUF file"),
    "G1_only_magic": (b"GGUF", "byte 4: 4 more bytes are announced, and the file ends at byte 4:"),
    "G2_version_0": (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "GGUF version 0 is not supported"),
    "G2_version_1": (b"GGUF" + struct.pack("<III", 1, 0, 0), "GGUF version 1 is not supported"),
    "G2_version_4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "GGUF version 4 is not supported"),
    "G2_big_endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte 4: a big-endian GGUF file"),
    "G3_tensors": (model(n_tensors=HUGE), "1152921504606846976 tensors are announced, and"),
    "G3_tensors_to_the_end": (model(n_tensors=130, data=4096), "130 tensors are announced"),
    "G3_tensors_behind_the_keys": (
        model([kv(b"k", 8, text(b"x" * 4000))], n_tensors=100, data=64),
        "100 tensors are announced",
    ),
    "G3_keys": (model(n_kv=HUGE), "1152921504606846976 metadata keys are announced"),
    "G3_keys_to_the_end": (model(n_kv=400, data=4096), "400 metadata keys are announced"),
    "G3_all_bits": (model(n_kv=(1 << 64) - 1), "18446744073709551615 metadata keys"),
    "G3_many_keys": (
        model(n_kv=10_001, data=140_000),
        "10001 metadata keys are more than the 10000 that are sane",
    ),
    "G3_many_tensors": (
        model(n_tensors=20_001, data=660_000),
        "20001 tensors are more than the 20000 that are sane",
    ),
    "G4_string": (
        model([kv(b"k", 8, struct.pack("<Q", 1 << 40))]),
        "1099511627776 more bytes are announced, and the file ends",
    ),
    "G4_string_of_all_bits": (model([kv(b"k", 8, b"\xff" * 8)]), "more bytes are announced"),
    "G4_key": (model([struct.pack("<Q", 1 << 40)]), "the key has 1099511627776 bytes, and 65536 are allowed"),
    "G4_key_of_10_MB": (model([kv(b"k" * 10_000_000, 0, b"\0")]), "the key has 10000000 bytes"),
    "G4_last_string_of_an_array": (
        model([kv(b"k", 9, array(8, 2, text(b"a") + struct.pack("<Q", 1 << 50)))]),
        "more bytes are announced",
    ),
    "G5_array": (model([kv(b"k", 9, array(0, 1 << 33))]), "8589934592 array items are announced"),
    "G5_array_of_numbers": (model([kv(b"k", 9, array(10, 600))]), "600 array items are announced"),
    "G5_array_of_strings": (model([kv(b"k", 9, array(8, 600))]), "600 array items are announced"),
    "G5_many_items": (
        model([kv(b"k", 9, array(0, 1_600_001, bytes(2_000_001)))]),
        "1600001 array items are more than the 1600000",
    ),
    "G5_many_items_together": (
        model([kv(b"%d" % i, 9, array(0, 900_000, bytes(900_000))) for i in range(3)]),
        "900000 array items are more than the 700000",
    ),
    "G5_deep": (model([kv(b"k", 9, nested(4))]), "arrays are nested more than 4 deep"),
    "G5_very_deep": (model([kv(b"k", 9, nested(100_000))]), "arrays are nested more than 4 deep"),
    "G5_wide": (
        model([kv(b"k", 9, array(9, 130_000, array(0, 0) * 130_000))]),
        "130000 array items are more than the 100000",
    ),
    "G6_value_type": (model([kv(b"k", 13, b"")]), "there is no value type 13"),
    "G6_negative_value_type": (model([kv(b"k", 0xFFFFFFFF, b"")]), "there is no value type 4294967295"),
    "G6_item_type": (model([kv(b"k", 9, array(99, 1))]), "there is no value type 99"),
    "G6_tensor_type": (model(tensors=[tensor(kind=4)]), "tensor w: tensor type 4 is not known"),
    "G6_negative_tensor_type": (
        model(tensors=[tensor(kind=0xFFFFFFFF)]),
        "tensor type 4294967295 is not known",
    ),
    "G6_bool": (model([kv(b"k", 7, b"\2")]), "a bool is neither 0 nor 1"),
    "G6_bools": (model([kv(b"k", 9, array(7, 3, b"\0\1\xff"))]), "a bool is neither 0 nor 1"),
    "G7_key_twice": (model([kv(b"k", 0, b"\0"), kv(b"k", 0, b"\1")]), "the key k is there twice"),
    "G7_tensor_twice": (model(tensors=[tensor(), tensor(offset=128)]), "the tensor w is there twice"),
    "G7_key_of_bad_utf8": (model([kv(b"\xff", 0, b"\0")]), "byte 24: the key is not valid UTF-8"),
    "G7_key_of_a_surrogate": (model([kv(b"\xed\xa0\x80", 0, b"\0")]), "the key is not valid UTF-8"),
    "G7_tensor_of_bad_utf8": (model(tensors=[tensor(b"\xc0\xaf")]), "the tensor name is not valid UTF-8"),
    **{
        f"G8_alignment_{number}": (
            model([kv(b"general.alignment", 4, struct.pack("<I", number))], [tensor()]),
            f"key general.alignment: {number} is no alignment",
        )
        for number in (0, 1, 3, 4, 24, 33, 1 << 21, 1 << 31, (1 << 32) - 1)
    },
    "G8_alignment_of_another_type": (
        model([kv(b"general.alignment", 10, struct.pack("<Q", 32))]),
        "key general.alignment: 32 is no alignment",
    ),
    "G8_alignment_text": (model([kv(b"general.alignment", 8, text(b"32"))]), "32 is no alignment"),
    "G8_alignment_list": (
        model([kv(b"general.alignment", 9, array(4, 1, struct.pack("<I", 32)))]),
        "[32] is no alignment",
    ),
    "G9_unaligned": (model(tensors=[tensor(offset=4)]), "tensor w: offset 4 is not a multiple of 32"),
    "G9_same_place": (
        model(tensors=[tensor(b"v"), tensor(b"w")]),
        "tensor w: starts at byte 0 of the data, inside the tensor before it",
    ),
    "G9_overlap": (
        model(tensors=[tensor(b"w", offset=96), tensor(b"v", dims=(25,))]),
        "tensor w: starts at byte 96 of the data, inside",
    ),
    "G9_beyond": (model(tensors=[tensor(offset=4096)]), "tensor w: ends at byte"),
    "G9_last_byte": (model(tensors=[tensor()], data=127), "which has"),
    "G9_far_beyond": (
        model(tensors=[tensor(offset=(1 << 64) - 32)]),
        "tensor w: ends at byte 18446744073709551",
    ),
    "G10_no_dims": (model(tensors=[tensor(dims=())]), "tensor w: 0 dimensions, where 1 to 4"),
    "G10_five_dims": (model(tensors=[tensor(dims=(1,) * 5)]), "tensor w: 5 dimensions"),
    "G10_many_dims": (model(tensors=[text(b"w") + b"\xff" * 4]), "tensor w: 4294967295 dimensions"),
    "G10_dim_0": (model(tensors=[tensor(dims=(32, 0))]), "tensor w: a dimension of shape [0, 32] is 0"),
    "G10_product_is_0_modulo_2_to_the_64": (
        model(tensors=[tensor(dims=(1 << 32, 1 << 32))]),
        "tensor w: ends at",
    ),
    "G10_product_is_small_modulo_2_to_the_64": (
        model(tensors=[tensor(dims=((1 << 63) + 1, 2))]),
        "tensor w: ends at byte",
    ),
    "G10_largest_dims": (model(tensors=[tensor(dims=((1 << 64) - 1,) * 4)]), "tensor w: ends at byte"),
    "G10_dims_larger_than_the_data": (model(tensors=[tensor(dims=(64, 4096))]), "tensor w: ends at byte"),
    "G10_part_of_a_block": (
        model(tensors=[tensor(dims=(48,), kind=8)]),
        "rows of 48 weights are not whole Q8_0",
    ),
    "G12_name_of_10_MB": (model(tensors=[tensor(b"w" * 10_000_000)]), "the tensor name has 10000000 bytes"),
    "G12_hostile_name": (
        model(tensors=[tensor(b"\n\x1b[31mOK", offset=1)]),
        r"tensor \n\x1b[31mOK: offset 1",
    ),
    "G12_hostile_key": (model([kv(b"\r\x1b]0;", 0, b"\0")] * 2), r"the key \r\x1b]0; is there twice"),
}


@pytest.fixture
def write(tmp_path):
    def write(data, name="model.gguf"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", FILES)
def test_file(name, write, refused):
    data, says = FILES[name]
    path = write(data)
    error = refused(open_gguf, path, says=says, kind=MalformedFileError)
    assert str(error).startswith(f"{path}: ")
    assert len(str(error)) < 1200


@pytest.mark.parametrize("size", [0, 4, 7, 8, 12, 20, 24, 30, 40, 60])
def test_truncated_header(write, refused, size):
    whole = model([kv(b"general.architecture", 8, text(b"phi3"))], [tensor()], data=0)
    refused(open_gguf, write(whole[:size]), says="", kind=MalformedFileError)


def test_a_header_that_never_ends(tmp_path, refused):
    """A sparse file whose one string is 1 TB, all of it really there."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(model([kv(b"k", 8, struct.pack("<Q", 1 << 40))], data=0))
        try:
            file.truncate(1 << 41)
        except OSError:
            pytest.skip("the file system has no sparse files of that size")
    refused(open_gguf, path, says="the header is larger than 30000000 bytes", kind=MalformedFileError)


def test_names_are_never_paths(write):
    names = [b"../../etc/passwd", b"/abs", b"C:\\x", b"", b"a" * 200, "ünï".encode()]
    file = open_gguf(write(model(tensors=[tensor(name, offset=128 * i) for i, name in enumerate(names)])))
    assert list(file.tensors) == [name.decode() for name in names]


class TestParts:
    @pytest.fixture
    def parts(self, write):
        """Writes three parts of one tensor each; the numbers in them can lie."""

        def write_parts(no=(0, 1, 2), count=(3, 3, 3), total=(3, 3, 3), names="abc", kind=ValueType.UINT16):
            paths = []
            for i in range(3):
                numbers = {"split.no": no[i], "split.count": count[i], "split.tensors.count": total[i]}
                entries = [serialize_kv(k, GgufValue(kind, n)) for k, n in numbers.items() if n is not None]
                header = serialize_header(1, len(entries)) + b"".join(entries)
                header += serialize_tensor_info(names[i], (8,), 0, 0)
                paths.append(
                    write(header + bytes(-len(header) % 32) + bytes(32), f"m-{i + 1:05d}-of-00003.gguf")
                )
            return paths

        return write_parts

    def test_they_are_good(self, parts):
        assert list(open_gguf(parts()[0]).tensors) == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("lies", "says"),
        [
            ({"no": (0, 2, 1)}, "m-00002-of-00003.gguf: key split.no: 2, where 1 is expected"),
            ({"no": (0, 1, 1)}, "m-00003-of-00003.gguf: key split.no: 1, where 2 is expected"),
            ({"no": (1, 1, 2)}, "not the first of 3 parts"),
            ({"no": (0, None, 2)}, "m-00002-of-00003.gguf: key split.no: expected a number"),
            ({"no": (None, 1, 2)}, "key split.no: expected a number"),
            ({"count": (2, 3, 3)}, "a part of 2, and its name does not end in -00001-of-00002.gguf"),
            ({"count": (60_000, 3, 3)}, "a part of 60000, and its name"),
            ({"count": (3, 3, 2)}, "m-00003-of-00003.gguf: key split.count: 2, where 3 is expected"),
            ({"count": (3, None, 3)}, "m-00002-of-00003.gguf: key split.count: expected a number"),
            ({"total": (4, 4, 4)}, "key split.tensors.count: 4 are announced, and the 3 parts hold 3"),
            ({"total": (3, 3, 9)}, "m-00003-of-00003.gguf: key split.tensors.count: 9, where 3"),
            ({"total": (None, 3, 3)}, "key split.tensors.count: expected a number"),
            ({"names": "aba"}, "m-00003-of-00003.gguf: tensor a: the tensor is in another part too"),
            ({"kind": ValueType.FLOAT32}, "key split.count: expected a number"),
            ({"kind": ValueType.INT32, "count": (-3, 3, 3)}, "key split.count: expected a number"),
        ],
    )
    def test_g11_lies(self, parts, refused, lies, says):
        refused(open_gguf, parts(**lies)[0], says=says, kind=MalformedFileError)

    def test_g11_missing_part(self, parts, refused):
        paths = parts()
        paths[2].unlink()
        refused(open_gguf, paths[0], says="part 3 of 3 is not there", kind=MissingFileError)

    def test_g11_many_parts(self, write, refused):
        entries = [serialize_kv("split.count", GgufValue(ValueType.UINT32, 99_999))]
        entries += [serialize_kv("split.no", GgufValue(ValueType.UINT32, 0))]
        path = write(serialize_header(0, 2) + b"".join(entries), "m-00001-of-99999.gguf")
        refused(open_gguf, path, says="part 2 of 99999 is not there", kind=MissingFileError)

    def test_g11_another_name(self, parts, refused):
        path = parts()[0]
        path = path.rename(path.with_name("renamed.gguf"))
        refused(
            open_gguf, path, says="its name does not end in -00001-of-00003.gguf", kind=MalformedFileError
        )

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX file system")
    def test_a_part_that_is_a_pipe(self, parts, refused):
        paths = parts()
        paths[1].unlink()
        os.mkfifo(paths[1])
        refused(open_gguf, paths[0], says="not a regular file", kind=InputError)
