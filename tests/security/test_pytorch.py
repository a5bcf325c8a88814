"""Hostile PyTorch files: each is refused with one line, and nothing in it is run."""

from __future__ import annotations

import struct
import sys

import pytest

import phiconv
from phiconv.errors import MalformedFileError, UnsafePickleError, UnsupportedModelError
from phiconv_formats.pytorch import open_pytorch

TORCH = b"ctorch._utils\n_rebuild_tensor_v2\n"
EMPTY = b"ccollections\nOrderedDict\n)R"
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0X\3\0\0\0cpuK\4tQ".replace(
    b"X\1\0\0\0X", b"X\1\0\0\0000X"
)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(rest=b"K\0K\4\x85K\1\x85\x89" + EMPTY, storage=STORAGE, function=TORCH):
    return function + b"(" + storage + rest + b"tR"


def state(value):
    """A dict with one entry."""
    return b"\x80\x02}" + text("w") + value + b"s."


def mapped(function, *arguments):
    return b"c" + function + b"\n(" + b"".join(map(text, arguments)) + b"tR"


# Opcodes of the whole pickle, what the message says.
UNSAFE = {
    "P1_reduce": (state(mapped(b"os\nsystem", "touch sentinel")), "it asks for os.system"),
    "P1_posix": (state(mapped(b"posix\nsystem", "touch sentinel")), "it asks for posix.system"),
    "P1_eval": (state(mapped(b"builtins\neval", "open('sentinel', 'w')")), "it asks for builtins.eval"),
    "P2_stack_global": (
        b"\x80\x04" + text("os") + b"\x94" + text("system") + b"\x9400h\0h\1\x93.",
        "it uses POP",
    ),
    "P2_names_from_the_memo": (
        b"\x80\x04(" + text("os") + b"\x94" + text("system") + b"\x94th\0h\1\x93.",
        "it asks for os.system",
    ),
    "P2_no_text": (b"\x80\x04K\1K\2\x93.", "a name made of something that is no text"),
    "P3_getattr": (state(mapped(b"builtins\ngetattr", "os", "system")), "it asks for builtins.getattr"),
    "P3_dotted_name": (state(mapped(b"torch\nos.system", "touch sentinel")), "it asks for torch.os.system"),
    "P3_another_part_of_torch": (
        state(mapped(b"torch.storage\n_load_from_bytes", "x")),
        "it asks for torch.storage._load_from_bytes",
    ),
    "P4_newobj": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "it uses NEWOBJ"),
    "P4_newobj_ex": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "it uses NEWOBJ_EX"),
    "P4_build_of_a_name": (b"\x80\x02ctorch\nSize\n}b.", "it sets the state of an object (BUILD)"),
    "P4_build_of_no_dict": (b"\x80\x02}(K\1K\2tb.", "it sets the state of an object (BUILD)"),
    "P5_ext1": (b"\x80\x02\x82\x01.", "it uses EXT1"),
    "P5_ext4": (b"\x80\x02\x84\x01\0\0\0.", "it uses EXT4"),
    "P6_inst": (b"(" + text("touch sentinel") + b"ios\nsystem\n.", "it asks for os.system"),
    "P6_inst_of_a_known_name": (b"(icollections\nOrderedDict\n.", "it asks for collections.OrderedDict"),
    "P6_obj": (b"(cos\nsystem\n" + text("x") + b"o.", "it asks for os.system"),
    "P6_obj_of_a_known_name": (b"(ccollections\nOrderedDict\no.", "it uses OBJ"),
    "P6_protocol_0": (b"(dp0\nS'w'\n.", "it uses DICT"),
    "P8_no_tuple": (state(TORCH + b"]R"), "it calls torch._utils._rebuild_tensor_v2"),
    "P8_wrong_types": (state(TORCH + b"(K\1K\1K\1K\1tR"), "with arguments that describe nothing"),
    "P8_a_call_of_a_storage": (state(b"ctorch\nFloatStorage\n)R"), "it calls torch.FloatStorage"),
    "P8_a_call_of_a_number": (state(b"K\1)R"), "it calls something that is no function"),
    "P8_ordered_dict_of_text": (state(b"ccollections\nOrderedDict\n" + text("ab") + b"\x85R"), "nothing"),
    "P8_parameter_of_a_number": (
        state(b"ctorch._utils\n_rebuild_parameter\n(K\1\x88" + EMPTY + b"tR"),
        "describe nothing",
    ),
    "P8_persistent_id": (state(text("module") + b"Q"), "a persistent id that is no storage"),
    "P8_persistent_id_of_a_name": (
        state(b"(X\7\0\0\0storageccollections\nOrderedDict\n" + text("0") + text("cpu") + b"K\4tQ"),
        "a persistent id that is no storage",
    ),
    "P17_negative_stride": (
        state(tensor(b"K\0K\4\x85J\xff\xff\xff\xff\x85\x89" + EMPTY)),
        "describe nothing",
    ),
    "P17_negative_offset": (
        state(tensor(b"J\xff\xff\xff\xffK\4\x85K\1\x85\x89" + EMPTY)),
        "describe nothing",
    ),
    "P17_bool_size": (state(tensor(b"K\0\x88\x85K\1\x85\x89" + EMPTY)), "describe nothing"),
    "P17_float_size": (state(tensor(b"K\0G" + bytes(8) + b"\x85K\1\x85\x89" + EMPTY)), "describe nothing"),
    "P17_ranks": (state(tensor(b"K\0K\4\x85)\x89" + EMPTY)), "describe nothing"),
    "key_that_hashes_for_ever": (
        b"\x80\x02}K\1\x85" + b"q\0h\0\x86" * 90 + b"K\1s.",
        "a dict with a key of type tuple",
    ),
    "hostile_name": (b"\x80\x02c\x1b[2J\nx\n.", r"it asks for \x1b[2J.x"),
}

MALFORMED = {
    "P7_second_pickle": (state(tensor()) + state(mapped(b"os\nsystem", "x")), "bytes follow the end"),
    "P9_doubling_lists": (b"\x80\x02]q\0" + b"(" + b"h\0" * 250_000 + b"e.", "more than 200000 opcodes"),
    "P9_nested_lists": (
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"}.",
        "the pickle ends with 2 values",
    ),
    "P10_long4": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "takes 2147483647 bytes"),
    "P10_long4_that_is_there": (b"\x80\x02\x8b\0\x10\0\0" + bytes(4096) + b".", "an integer of 4096 bytes"),
    "P10_binunicode8": (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "takes 18446744073709551615 bytes"),
    "P10_binunicode": (b"\x80\x02X\xff\xff\xff\xffa.", "takes 4294967295 bytes"),
    "P11_frame": (b"\x80\x04\x95" + b"\xff" * 8 + b".", "a frame of 18446744073709551615 bytes"),
    "P12_nothing": (b"", "ends without a STOP"),
    "P12_no_stop": (state(tensor())[:-1], "ends without a STOP"),
    "P12_within_an_opcode": (b"\x80\x02X\1", "ends within an opcode"),
    "P12_within_a_name": (b"\x80\x02cos\nsys", "ends within a name"),
    "protocol": (b"\x80\xff.", "a pickle of protocol 255"),
    "no_opcode": (b"\x80\x02\xfe.", "0xFE is no opcode"),
    "text": (b"\x80\x02X\1\0\0\0\xff.", "not valid UTF-8"),
    "empty_stack": (b"\x80\x02.", "ends with 0 values"),
    "empty_stack_of_an_opcode": (b"\x80\x02R.", "REDUCE finds an empty stack"),
    "below_a_mark": (b"\x80\x02K\1K\2(\x86.", "TUPLE2 finds an empty stack"),
    "no_mark": (b"\x80\x02t.", "TUPLE finds no mark"),
    "memo": (b"\x80\x02h\x07.", "nothing is in memo 7"),
    "item_of_a_tuple": (b"\x80\x02)K\1a.", "an item for something that is no list"),
    "item_of_a_list": (b"\x80\x02]K\1K\2s.", "an item for something that is no dict"),
    "odd_items": (b"\x80\x02}(K\1u.", "an item for something that is no dict"),
    "nothing_in_it": (b"\x80\x02}.", "there is no dict of tensors"),
    "one_tensor": (b"\x80\x02" + tensor() + b".", "there is no dict of tensors"),
    "itself": (b"\x80\x02}q\0X\5\0\0\0modelh\0s.", "there is no dict of tensors"),
    "P16_outside": (
        state(tensor(b"K\1K\4\x85K\1\x85\x89" + EMPTY)),
        "tensor w: reaches element 4 of a storage",
    ),
    "P16_far_outside": (
        state(tensor(b"K\0\x8a\x07\0\0\0\0\0\0\x40\x85\x8a\x07\0\0\0\0\0\0\x40\x85\x89" + EMPTY)),
        "reaches element",
    ),
    "P18_storage": (
        state(tensor(storage=STORAGE.replace(b"K\4", b"K\5"))),
        "of a storage of 20 bytes, which has",
    ),
    "P18_missing_storage": (state(tensor(storage=STORAGE.replace(b"0X", b"1X"))), "storage 1: is missing"),
    "P18_path": (
        state(tensor(storage=STORAGE.replace(b"X\1\0\0\0000", text("../../data/0")))),
        "storage ../../data/0: is missing",
    ),
    "P19_stride_0": (state(tensor(b"K\0K\4\x85K\0\x85\x89" + EMPTY)), "holds elements twice"),
    "P19_overlap": (state(tensor(b"K\0K\2K\2\x86K\1K\1\x86\x89" + EMPTY)), "holds elements twice"),
}


@pytest.fixture
def torch_zip(make_pytorch, tmp_path):
    def write(content, storages=None):
        return make_pytorch.write_zip(tmp_path / "x.pt", content, storages or {"0": bytes(16)})

    return write


def test_the_builder_is_right(torch_zip):
    (found,) = open_pytorch(torch_zip(state(tensor()))).tensors.values()
    assert found.read(0, 4).tolist() == [[0]] * 4


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_pickles(name, torch_zip, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, says = UNSAFE[name]
    path = torch_zip(content)
    loaded = set(sys.modules)
    error = refused(open_pytorch, path, says=says, kind=UnsafePickleError)
    assert error.at.startswith("byte ")
    assert error.at.endswith(" of data.pkl")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]
    assert not {m for m in set(sys.modules) - loaded if not m.startswith(("phiconv", "pytest", "_pytest"))}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_pickles(name, torch_zip, refused):
    content, says = MALFORMED[name]
    error = refused(open_pytorch, torch_zip(content), says=says, kind=MalformedFileError)
    assert not isinstance(error, UnsafePickleError)


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_pickles_of_the_older_form(name, make_pytorch, refused, tmp_path):
    content, says = UNSAFE[name]
    make_pytorch.write_legacy(tmp_path / "x.bin", content, {"0": (4, bytes(16))})
    error = refused(open_pytorch, tmp_path / "x.bin", says=says, kind=UnsafePickleError)
    assert error.at.startswith("byte ")


def test_a_refusal_names_the_byte(torch_zip, refused):
    path = torch_zip(b"\x80\x02}q\0cos\nsystem\n.")
    assert refused(open_pytorch, path, says="", kind=UnsafePickleError).at == "byte 5 of data.pkl"


def test_no_fallback_and_no_output(torch_zip, tmp_path):
    path = torch_zip(UNSAFE["P1_reduce"][0])
    with pytest.raises(UnsafePickleError):
        phiconv.convert(path, tmp_path / "x.gguf", quant="f16")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_far_apart_elements(torch_zip, refused):
    view = tensor(b"K\0K\2\x85M\0\1\x85\x89" + EMPTY, STORAGE.replace(b"K\4", b"M\0\2"))
    path = torch_zip(state(view), {"0": bytes(2048)})
    refused(open_pytorch, path, says="lie too far from each other", kind=UnsupportedModelError)
