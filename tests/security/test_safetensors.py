"""Hostile safetensors files and indexes: each is refused with one line that names the file and the tensor."""

from __future__ import annotations

import json
import os
import struct
import sys

import pytest

from phiconv.errors import InputError, MalformedFileError, MissingFileError
from phiconv_formats.shared.safetensors import open_safetensors, open_sharded

BIG = 1 << 62


def entry(begin=0, end=4, shape=(1,), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def text(shape="[1]", offsets="[0,4]", dtype='"F32"'):
    """A header of one tensor as text, for what json.dumps would not write."""
    return f'{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'.encode()


# Header, data, what the message says.
HEADERS = {
    "S5_array": (b"[]", b"", "no JSON object"),
    "S5_nothing": (b"", b"", "no JSON object"),
    "S5_leading_space": (b' {"w":1}', b"", "no JSON object"),
    "S5_byte_order_mark": (b"\xef\xbb\xbf{}", b"", "no JSON object"),
    "S5_cut": (b'{"w":', b"", "no JSON object"),
    "S6_trailing_newline": (b"{}\n", b"", "no JSON object"),
    "S6_trailing_nul": (b"{}\0\0", b"", "no JSON object"),
    "S6_second_object": (b"{} {}", b"", "not valid JSON"),
    "S7_bad_utf8": (b'{"\xff\xfe": 1}', b"", "not valid UTF-8"),
    "S7_half_a_surrogate_pair": (b'{"\\ud800":' + text()[5:], bytes(4), "surrogate"),
    "S8_duplicate_tensor": (b'{"w":1,"w":2}', b"", "key w: the key is there twice"),
    "S8_duplicate_field": (b'{"w":{"dtype":"F32","dtype":"F16"}}', b"", "key dtype: the key is there twice"),
    "S9_deep": (b'{"w":' + b"[" * 500_000 + b"]" * 500_000 + b"}", b"", "JSON"),
    "S9_deep_objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"", "nested too deeply"),
    "S10_nan": (text("[NaN]"), bytes(4), "NaN is not a JSON number"),
    "S10_infinite_offset": (text(offsets="[0,1e999]"), bytes(4), "too large"),
    "S10_long_number": (text(f"[{'9' * 5000}]"), bytes(4), "too many digits"),
    "S11_reversed": ({"w": entry(4, 0)}, bytes(4), "tensor w: data_offsets [4, 0] are reversed"),
    "S11_overlap": (
        {"v": entry(), "w": entry(0, 8, [2])},
        bytes(8),
        "tensor w: starts at byte 0 of the data",
    ),
    "S11_same_range": ({f"w{i}": entry() for i in range(9)}, bytes(4), "overlaps the tensor before it"),
    "S11_gap": (
        {"v": entry(), "w": entry(8, 12)},
        bytes(12),
        "tensor w: starts at byte 8 of the data, where 4",
    ),
    "S11_beyond": ({"w": entry(0, 8, [2])}, bytes(4), "tensor w: ends at byte"),
    "S11_far_beyond": ({"w": entry(0, BIG, [BIG // 4])}, bytes(4), "tensor w: ends at byte"),
    "S11_not_from_0": ({"w": entry(4, 8)}, bytes(8), "leaves a gap before it"),
    "S11_rest": ({"w": entry()}, bytes(8), "4 bytes follow the last tensor"),
    "S11_no_tensor": ({}, bytes(8), "8 bytes follow"),
    "S11_one_offset": (text(offsets="[4]"), bytes(4), "tensor w: data_offsets are not two byte offsets"),
    "S11_three_offsets": (text(offsets="[0,4,4]"), bytes(4), "not two byte offsets"),
    "S11_negative": (text(offsets="[-4,0]"), bytes(4), "not two byte offsets"),
    "S11_float": (text(offsets="[0,4.0]"), bytes(4), "not two byte offsets"),
    "S11_bool": (text(offsets="[false,4]"), bytes(4), "not two byte offsets"),
    "S11_no_list": (text(offsets='"04"'), bytes(4), "not two byte offsets"),
    "S12_product_of_2_to_the_64": (
        text(f"[{1 << 32},{1 << 32}]"),
        bytes(4),
        "takes 73786976294838206464 bytes",
    ),
    "S12_product_is_0_modulo_2_to_the_64": (text(f"[{1 << 32},{1 << 32}]", "[0,0]"), b"", "takes 7378697629"),
    "S12_too_few_bytes": (
        text("[2]"),
        bytes(4),
        "tensor w: F32 of shape [2] takes 8 bytes, and data_offsets hold 4",
    ),
    "S12_half_a_byte": (text("[3]", "[0,1]", '"F4"'), bytes(1), "takes 2 bytes"),
    "S12_negative_dims": (text("[-1,-1]"), bytes(4), "tensor w: the shape is not a list of sizes"),
    "S12_float_dim": (text("[1.0]"), bytes(4), "the shape is not a list of sizes"),
    "S12_bool_dim": (text("[true]"), bytes(4), "the shape is not a list of sizes"),
    "S12_text_dim": (text('["1"]'), bytes(4), "the shape is not a list of sizes"),
    "S12_no_list": (text("1"), bytes(4), "the shape is not a list of sizes"),
    "S12_huge_dims": (text(f"[{','.join(['9' * 4000] * 60)}]"), bytes(4), "the shape is not a list of sizes"),
    "S12_many_dims": (text(f"[{','.join(['1'] * 100_000)}]"), bytes(4), "the shape is not a list of sizes"),
    "S12_many_huge_dims": (text(f"[{','.join([str(BIG)] * 64)}]"), bytes(4), "takes 1227"),
    "S13_unknown_dtype": (text(dtype='"F32\\u001b[2J"'), bytes(4), r"tensor w: F32\x1b[2J is not a dtype"),
    "S13_lower_case_dtype": (text(dtype='"f32"'), bytes(4), "f32 is not a dtype"),
    "S13_no_text": (text(dtype='["F32"]'), bytes(4), "is not a dtype"),
    "S13_no_object": ({"w": 1}, bytes(4), "tensor w: expected an object with dtype, shape and data_offsets"),
    "S13_a_field_missing": ({"w": {"dtype": "F32", "shape": [1]}}, bytes(4), "expected an object with dtype"),
    "S13_a_field_too_many": ({"w": entry(x=1)}, bytes(4), "expected an object with dtype"),
    "S14_metadata_number": (
        {"__metadata__": {"a": 1}},
        b"",
        "key __metadata__: expected an object of strings",
    ),
    "S14_metadata_list": ({"__metadata__": []}, b"", "expected an object of strings"),
    "S14_metadata_null": ({"__metadata__": None}, b"", "expected an object of strings"),
    "count_of_tiny_entries": (
        b"{"
        + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(40_000))
        + b"}",
        b"",
        "more than 250000 values",
    ),
    "hostile_name": ({"\n\x1b[31mERROR\u202e": entry(0, 8)}, bytes(8), r"tensor \n\x1b[31mERROR\u202e: F32"),
    "long_name": ({"w" * 1_000_000: entry(0, 8)}, bytes(8), "takes 4 bytes"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header(name, write_safetensors, refused):
    header, data, says = HEADERS[name]
    path = write_safetensors(header, data)
    error = refused(open_safetensors, path, says=says, kind=MalformedFileError)
    assert str(error).startswith(f"{path}: ")
    assert len(str(error)) < 1200


@pytest.mark.parametrize("size", range(8))
def test_s1_too_short(tmp_path, refused, size):
    (tmp_path / "f").write_bytes(bytes(size))
    refused(open_safetensors, tmp_path / "f", says=f"it has {size} bytes", kind=MalformedFileError)


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (3, "the header takes 3 bytes, and the file ends at byte 10"),
        (100_000_000, "the header takes 100000000 bytes"),
        (100_000_001, "a header of 100000001 bytes, where 100000000 are allowed"),
        (1 << 63, "a header of 9223372036854775808 bytes"),
        ((1 << 64) - 1, "a header of 18446744073709551615 bytes"),
    ],
)
def test_s2_to_s4_length_of_the_header(write_safetensors, refused, length, says):
    path = write_safetensors(b"{}", length=length)
    refused(open_safetensors, path, says=says, kind=MalformedFileError)


def test_s14_sizes_of_zero_are_legal(write_safetensors):
    header = {"a": entry(0, 0, [0, BIG]), "b": entry(), "c": entry(4, 4, [3, 0])}
    archive = open_safetensors(write_safetensors(header, bytes(4)))
    assert [tensor.size for tensor in archive.tensors.values()] == [0, 1, 0]


def test_every_truncation_is_refused(write_safetensors, refused):
    path = write_safetensors({"v": entry(), "w": entry(4, 12, [2])}, bytes(12))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.unlink()
        path.write_bytes(whole[:size])
        refused(open_safetensors, path, says="", kind=MalformedFileError)


class TestIndex:
    @pytest.fixture
    def model(self, write_safetensors, tmp_path):
        """Writes an index; the folder has shards x (tensors a and b) and y (tensor c)."""
        write_safetensors({"a": entry(), "b": entry(4, 8)}, bytes(8), "x.safetensors")
        write_safetensors({"c": entry()}, bytes(4), "y.safetensors")

        def write(weight_map):
            path = tmp_path / "model.safetensors.index.json"
            path.write_text(
                weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
            )
            return path

        return write

    GOOD = {"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors"}  # noqa: RUF012

    def test_it_is_good(self, model):
        assert list(open_sharded(model(self.GOOD)).tensors) == ["a", "b", "c"]

    @pytest.mark.parametrize(
        "shard",
        [
            "../../etc/passwd", "/etc/passwd", "a/../x.safetensors", "./x.safetensors", "sub/x.safetensors",
            "..\\..\\x", "C:\\x.safetensors", "C:x.safetensors", "\\\\host\\share", "x.safetensors:stream",
            "https://example.com/x.safetensors", "file:x", "x\0.safetensors", "x\n", "", ".", "..",
            "x" * 256, "é" * 200, "\u202ex", None, 1, ["x.safetensors"], True,
        ],
    )  # fmt: skip
    def test_i1_only_plain_names(self, model, refused, shard):
        error = refused(
            open_sharded, model({"a": shard}), says="is not the name of a file", kind=MalformedFileError
        )
        assert "key weight_map, tensor a" in str(error)

    def test_i2_missing_shard(self, model, refused):
        says = "1 of 3 shards are not there: z.safetensors; download z.safetensors again"
        refused(open_sharded, model({**self.GOOD, "d": "z.safetensors"}), says=says, kind=MissingFileError)

    def test_i2_many_missing_shards(self, model, refused):
        many = {f"t{i}": f"s{i:05d}" for i in range(5000)}
        refused(open_sharded, model(many), says="5000 of 5000 shards are not there", kind=MissingFileError)

    def test_i3_mapped_to_the_wrong_shard(self, model, refused):
        says = "x.safetensors: tensor b: the tensor is in this shard, and model.safetensors.index.json says"
        refused(open_sharded, model({**self.GOOD, "b": "y.safetensors"}), says=says)

    def test_i4_tensor_that_is_in_no_map(self, model, refused):
        says = "tensor b: the tensor is in this shard, and model.safetensors.index.json says that it is in no"
        refused(open_sharded, model({"a": "x.safetensors", "c": "y.safetensors"}), says=says)

    def test_i5_tensor_that_is_in_no_shard(self, model, refused):
        says = "y.safetensors: tensor d: model.safetensors.index.json says that the tensor is in this shard"
        refused(open_sharded, model({**self.GOOD, "d": "y.safetensors"}), says=says)

    def test_i6_duplicate_across_shards(self, model, write_safetensors, refused):
        write_safetensors({"c": entry(), "a": entry(4, 8)}, bytes(8), "y.safetensors")
        refused(open_sharded, model(self.GOOD), says="y.safetensors: tensor a: the tensor is in this shard")

    def test_i6_duplicate_key(self, model, refused):
        path = model('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
        refused(open_sharded, path, says="key a: the key is there twice")

    @pytest.mark.parametrize(
        "content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": null}']
    )
    def test_no_map(self, model, refused, content):
        refused(open_sharded, model(content), says="key weight_map: expected an object that maps tensors")

    @pytest.mark.parametrize("content", ["[]", "", "[" * 100_000, '{"weight_map": {"a": NaN}}'])
    def test_no_json_object(self, model, refused, content):
        refused(open_sharded, model(content), says="JSON")

    def test_a_damaged_shard_is_named(self, model, tmp_path, refused):
        (tmp_path / "y.safetensors").write_bytes(struct.pack("<Q", 1 << 40))
        refused(open_sharded, model(self.GOOD), says=f"{tmp_path / 'y.safetensors'}: byte 0: ")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX file system")
class TestLinks:
    def test_l1_link_to_another_file(self, tmp_path, refused):
        (tmp_path / "model.safetensors").symlink_to("/etc/passwd")
        refused(
            open_safetensors,
            tmp_path / "model.safetensors",
            says="a link out of its folder, to /etc/passwd",
            kind=InputError,
        )

    def test_l1_loop(self, tmp_path, refused):
        (tmp_path / "a").symlink_to("a")
        refused(open_safetensors, tmp_path / "a", says="form a loop")

    def test_l2_links_of_a_download_cache(self, write_safetensors, tmp_path):
        repository = tmp_path / "models--someone--model"
        (repository / "blobs").mkdir(parents=True)
        (repository / "snapshots" / "main").mkdir(parents=True)
        write_safetensors({"a": entry()}, bytes(4), f"{repository.name}/blobs/0123abcd")
        link = repository / "snapshots" / "main" / "model.safetensors"
        link.symlink_to("../../blobs/0123abcd")
        archive = open_safetensors(link)
        assert archive.path == link
        assert archive.tensors["a"].read(0, 1).shape == (1, 1)

    def test_l3_hard_link(self, write_safetensors, tmp_path):
        os.link(write_safetensors({"a": entry()}, bytes(4)), tmp_path / "hard")
        assert list(open_safetensors(tmp_path / "hard").tensors) == ["a"]

    def test_l4_pipe_device_and_folder(self, tmp_path, refused):
        os.mkfifo(tmp_path / "model.safetensors")
        for path in (tmp_path / "model.safetensors", "/dev/zero", tmp_path):
            refused(open_safetensors, path, says="not a regular file", kind=InputError)
