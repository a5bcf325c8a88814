"""Scales that were bfloat16 before they came into a GGUF are bfloat16 again when they are read."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import phiconv
from phiconv import ir
from phiconv.errors import ConfigError, MalformedFileError
from phiconv.recipes import Choices
from phiconv_formats.gguf.reader import open_gguf
from phiconv_formats.gguf.scale_types import BF16_SCALES
from phiconv_formats.gguf.values import ValueType

DOWN = "blk.0.ffn_down.weight"


@pytest.fixture(scope="module")
def server_folder(make_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("server")
    choices = Choices(dtype="bf16")
    phiconv.convert(
        make_base(root / "base"), root / "o", to="compressed-tensors", quant="w4a16-g32", choices=choices
    )
    return root / "o"


@pytest.fixture(scope="module")
def marked(server_folder, tmp_path_factory):
    """A GGUF with the folder's blocks."""
    path = tmp_path_factory.mktemp("marked") / "a.gguf"
    phiconv.convert(server_folder, path)
    return path


def blocks_of(model, name):
    tensor = model.stored[name]
    return tensor.read(0, tensor.rows)


def test_the_blocks_are_those_of_the_folder(server_folder, marked):
    file = phiconv.open_model(marked)
    key = file.metadata[BF16_SCALES]
    assert (key.type, key.item_type) == (ValueType.ARRAY, ValueType.STRING)
    quantized = {n for n, t in file.stored.items() if isinstance(t.encoding, ir.BlockEncoding)}
    assert set(key.value) == quantized
    assert {file.stored[n].encoding.scale_type for n in quantized} == {ir.BF16}
    found, wanted = (
        blocks_of(file, DOWN),
        blocks_of(phiconv.open_model(server_folder), "model.layers.0.mlp.down_proj.weight"),
    )
    np.testing.assert_array_equal(found.codes, wanted.codes)
    assert found.scales.tobytes() == wanted.scales.tobytes()


def test_other_blocks_are_not_marked(marked, make_base, tmp_path):
    base = make_base(tmp_path / "base")
    phiconv.convert(base, tmp_path / "a.gguf", quant="Q4_0")
    assert BF16_SCALES not in open_gguf(tmp_path / "a.gguf").metadata
    again = Choices(allow_requantize=True)
    phiconv.convert(marked, tmp_path / "b.gguf", quant="Q8_0", choices=again)
    assert BF16_SCALES not in open_gguf(tmp_path / "b.gguf").metadata
    choices = Choices(dtype="f16")
    phiconv.convert(base, tmp_path / "f16", to="compressed-tensors", quant="w4a16-g32", choices=choices)
    phiconv.convert(tmp_path / "f16", tmp_path / "c.gguf")
    assert BF16_SCALES not in open_gguf(tmp_path / "c.gguf").metadata


@pytest.mark.parametrize("split_max_size", [None, 50_000])
def test_another_gguf_keeps_the_mark(marked, tmp_path, split_max_size):
    made = phiconv.convert(marked, tmp_path / "b.gguf", split_max_size=split_max_size, repack_only=True)
    first, second = phiconv.open_model(marked), phiconv.open_model(made.files[0])
    assert len(made.files) > 1 or split_max_size is None
    assert set(second.metadata[BF16_SCALES].value) == set(first.metadata[BF16_SCALES].value)
    assert second.stored[DOWN].encoding == first.stored[DOWN].encoding
    np.testing.assert_array_equal(blocks_of(second, DOWN).scales, blocks_of(first, DOWN).scales)


def test_a_scale_that_is_no_number_of_bfloat16_is_refused(marked, tmp_path):
    data = bytearray(marked.read_bytes())
    run = open_gguf(marked).tensors[DOWN].runs[0]
    start = run.source.stored.offset
    data[start : start + 2] = np.array([1 + 2.0**-10], "<f2").tobytes()
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    message = rf"a\.gguf: {DOWN}: says that its scales are bf16 numbers, and they are not"
    with pytest.raises(MalformedFileError, match=message):
        blocks_of(phiconv.open_model(path), DOWN)


def test_a_key_of_another_type_is_refused(marked, tmp_path):
    data = marked.read_bytes()
    at = data.index(BF16_SCALES.encode()) + len(BF16_SCALES) + 4  # the type of its elements
    path = tmp_path / "a.gguf"
    shutil.copy(marked, path)
    for kind in (0, 12):  # what were lengths of strings are not so many numbers
        path.write_bytes(data[:at] + kind.to_bytes(4, "little") + data[at + 4 :])
        with pytest.raises((ConfigError, MalformedFileError), match=r"a\.gguf"):
            open_gguf(path)


def test_names_of_other_tensors_are_passed_over(marked, tmp_path):
    """Whoever requantizes a file may keep its keys."""
    path = tmp_path / "a.gguf"
    path.write_bytes(marked.read_bytes().replace(DOWN.encode(), DOWN.replace("down", "none").encode(), 1))
    encodings = {name: tensor.encoding for name, tensor in open_gguf(path).tensors.items()}
    assert encodings[DOWN] == ir.Q4_0
