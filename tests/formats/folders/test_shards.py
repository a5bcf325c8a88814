"""Folders of safetensors: where every array goes, and what the index says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from memory_rows import in_memory
from phiconv import ir
from phiconv.errors import UsageError
from phiconv_formats.folders.shards import INDEX, Entry, Part, lay_out_shards
from phiconv_formats.shared.output import OutputTensor


def halves(encoded):
    """Columns of a matrix in two arrays, as quantized ones are stored in several."""
    left, right = np.split(encoded, 2, axis=-1)
    return left.reshape(-1).view(np.uint8), right.reshape(-1).view(np.uint8)


def entry(name, rows):
    tensor = in_memory(np.ones((rows, 4), np.float32))
    parts = (Part(f"{name}.z", "F32", (rows, 2), 8), Part(f"{name}.a", "F32", (rows, 2), 8))
    return Entry(OutputTensor(name, tensor, None), ir.F32, parts)


def lay_out(*entries, limit=100):
    return lay_out_shards(entries, limit, {"format": "test"}, halves)


def test_one_file_has_a_short_name():
    shards = lay_out(entry("w", 5))
    (file,) = shards.files
    assert file.name == "model.safetensors"
    assert shards.weight_map == {"w.a": file.name, "w.z": file.name}
    (stream,) = shards.streams
    head = len(file.chunks[0][1])
    assert [(s.file, s.offset) for s in stream.segments] == [(file.name, head), (file.name, head + 40)]
    assert file.size == head + stream.nbytes == head + 80


def test_parts_of_a_tensor_stay_together():
    shards = lay_out(entry("c", 5), entry("b", 5), entry("a", 1))
    first, second = (f.name for f in shards.files)
    assert (first, second) == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    expected = {"a.a": second, "a.z": second, "b.a": second, "b.z": second, "c.a": first, "c.z": first}
    assert list(shards.weight_map.items()) == list(expected.items())
    assert [s.name for s in shards.streams] == ["c", "b", "a"]


def test_the_index_counts_what_it_is_told_to():
    index = json.loads(lay_out(entry("b", 5), entry("a", 5)).index(indent=4, total_parameters=40))
    assert index["metadata"] == {"total_size": 160, "total_parameters": 40}
    assert list(index["weight_map"]) == ["a.a", "a.z", "b.a", "b.z"]


def test_what_a_runtime_opens_comes_first():
    shards = lay_out(entry("w", 5))
    package = shards.package({"config.json": b"{}", INDEX: shards.index()}, ["a note"])
    assert [f.name for f in package.files] == ["config.json", INDEX, "model.safetensors"]
    assert package.files[0].chunks == ((0, b"{}"),)
    assert (package.notes, package.own_folder) == (("a note",), True)


def test_names_count_to_99999():
    tiny = entry("w", 1)
    with pytest.raises(UsageError, match="would make 100000 files"):
        lay_out(*[tiny] * 100_000, limit=1)
