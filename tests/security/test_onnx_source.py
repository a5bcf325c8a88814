"""Hostile ONNX files: each is refused in one line, soon, and with little memory."""

from __future__ import annotations

import contextlib
import json
import shutil

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phiconv
from paths import FIXTURES
from phiconv.errors import PhiconvError

NAME = "model.layers.0.mlp.down_proj.MatMul.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "m"
    phiconv.convert(FIXTURES / "tiny-phi4mini", path, to="onnx", quant="int4-asym")
    return path


def opened_and_read(path):
    model = phiconv.open_model(path)
    for tensor in model.tensors.values():
        phiconv.read(tensor, 0, 1)


@pytest.fixture
def damage(folder, tmp_path):
    """A copy of the folder whose graph a function has changed."""

    def run(change):
        target = tmp_path / "x" / "m"
        shutil.copytree(folder, target)
        model = onnx.load(str(target / "model.onnx"), load_external_data=False)
        change(model)
        (target / "model.onnx").write_bytes(model.SerializeToString())
        return target

    return run


def tensor(model, suffix="_Q4"):
    return next(t for t in model.graph.initializer if t.name == NAME + suffix)


def external(key, value, suffix="_Q4"):
    def change(model):
        for entry in tensor(model, suffix).external_data:
            if entry.key == key:
                entry.value = value

    return change


def dims(*sizes, suffix="_Q4"):
    def change(model):
        tensor(model, suffix).dims[:] = sizes

    return change


def attribute(name, value, kind="MatMulNBits"):
    def change(model):
        for node in model.graph.node:
            for each in node.attribute:
                if node.op_type == kind and each.name == name:
                    each.i = value

    return change


def data_type(value, suffix="_Q4"):
    def change(model):
        tensor(model, suffix).data_type = value

    return change


def without(suffix):
    def change(model):
        model.graph.initializer.remove(tensor(model, suffix))

    return change


def two_of_one_name(model):
    model.graph.initializer.append(tensor(model))


def onto_the_next(model):
    found = next(e for e in tensor(model).external_data if e.key == "offset")
    found.value = str(int(found.value) + 64)


def onto_the_next_of_another_name(model):
    onto_the_next(model)
    found = next(e for e in tensor(model).external_data if e.key == "location")
    found.value = f"./{found.value}"


def in_a_ring(model):
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            node.input[1] = node.name
            model.graph.node.add(op_type="Cast", input=[node.name], output=[node.name])


FAULTS = {
    "absolute": (external("location", "/etc/passwd"), "not the name of a file in the same folder"),
    "parent": (external("location", "../m/model.onnx.data"), "not the name of a file in the same folder"),
    "drive": (external("location", "C:\\x"), "not the name of a file in the same folder"),
    "no name": (external("location", ""), "a file without a name"),
    "missing": (external("location", "other.data"), "no such file"),
    "far offset": (external("offset", "9" * 18), "it is truncated"),
    "huge offset": (external("offset", "9" * 30), "at no possible place"),
    "negative offset": (external("offset", "-4"), "at no possible place"),
    "empty length": (external("length", ""), "at no possible place"),
    "wrong length": (external("length", "7"), "the graph says 7"),
    "overlap": (onto_the_next, "overlaps tensor"),
    "overlap under another name": (onto_the_next_of_another_name, "overlaps tensor"),
    "the folder": (external("location", "./"), "not the name of a file in the same folder"),
    "negative dimension": (dims(256, -1, 16), "no possible shape"),
    "overflow": (dims(2**62, 2**62, 4), "the graph says"),
    "many dimensions": (dims(*[1] * 9), "no possible shape"),
    "other block shape": (dims(1, 1, 1), "the graph says"),
    "unknown type": (data_type(99), "type 99, which phiconv does not know"),
    "codes of floats": (data_type(1), "the graph says"),
    "scales as integers": (data_type(6, "_scales"), "where floats are expected"),
    "no scales": (without("_scales"), "is no tensor of the file"),
    "no codes": (without("_Q4"), "this tensor is missing"),
    "two of one name": (two_of_one_name, "two tensors are called"),
    "a ring": (in_a_ring, "this tensor is missing"),
    "blocks of 0": (attribute("block_size", 0), "nothing that phiconv reads"),
    "blocks of 64": (attribute("block_size", 64), "are no matrix of shape"),
    "negative rows": (attribute("N", -5), "are no matrix of shape"),
    "no columns": (attribute("K", 0), "are no matrix of shape"),
    "odd columns": (attribute("K", 33), "cannot be cut"),
    "3 bits": (attribute("bits", 3), "nothing that phiconv reads"),
    "8 bits": (attribute("bits", 8), "are no matrix of shape"),
    "another table": (attribute("gather_axis", 1, "GatherBlockQuantized"), "do not lie in its rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused(damage, refused, fault):
    change, says = FAULTS[fault]
    refused(phiconv.open_model, damage(change), says=says)


@pytest.mark.parametrize("inside", [False, True])
def test_link(damage, refused, folder, tmp_path, inside):
    path = damage(lambda _: None)
    data = path / "model.onnx.data"
    other = path / "blob" if inside else tmp_path / "elsewhere"
    data.rename(other)
    data.symlink_to(other)
    if inside:
        opened_and_read(path)
    else:
        refused(phiconv.open_model, path, says="a link out of its folder")


def test_links_of_a_hub_cache(damage, tmp_path):
    repository = tmp_path / "models--someone--model"
    path, blobs = repository / "snapshots" / "main", repository / "blobs"
    blobs.mkdir(parents=True)
    path.parent.mkdir()
    damage(lambda _: None).rename(path)
    for name in ("model.onnx", "model.onnx.data"):
        (path / name).rename(blobs / name[::-1])
        (path / name).symlink_to(blobs / name[::-1])
    opened_and_read(path)


def test_loop_of_links(damage, refused):
    path = damage(lambda _: None)
    (path / "model.onnx.data").unlink()
    (path / "model.onnx.data").symlink_to("model.onnx.data")
    refused(phiconv.open_model, path, says="model.onnx")


def varint(value):
    result = b""
    while value > 127:
        result += bytes([value & 127 | 128])
        value >>= 7
    return result + bytes([value])


def message(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


BYTES = {
    "empty": (b"", "0 graphs"),
    "text": (b"This is no model at all", "not an ONNX model"),
    "zeros": (bytes(100), "no field"),
    "endless number": (b"\xff" * 40, "a number without an end"),
    "longer than the file": (b"\x3a\xff\xff\xff\xff\x7f", "are left"),
    "two graphs": (message(7, b"") * 2, "2 graphs"),
    "group": (b"\x3b", "unknown kind"),
    "many nodes": (message(7, message(1, b"") * 100_000), "30000 nodes or 10000 tensors"),
    "many parts": (message(7, b"\x18\x00" * 230_000), "parts, which no Phi model has"),
    "long name": (message(7, message(5, message(8, b"x" * 100_000))), "a name of 100000 bytes"),
    "no text": (message(7, message(5, message(8, b"\xff"))), "no UTF-8"),
    "packed dimensions": (message(7, message(5, message(1, b"\x01" * 100_000))), "more than 8 numbers"),
    "sparse": (message(7, message(15, b"")), "sparse tensors"),
    "no weights": (message(7, b""), "0 tensors"),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes_are_refused(damage, refused, case):
    data, says = BYTES[case]
    path = damage(lambda _: None)
    (path / "model.onnx").write_bytes(data)
    refused(phiconv.open_model, path, says=says if case != "no weights" else "missing")


@pytest.mark.parametrize("part", [1, 2, 3, 5, 9])
def test_truncated_graph(damage, refused, part):
    path = damage(lambda _: None)
    data = (path / "model.onnx").read_bytes()
    (path / "model.onnx").write_bytes(data[: len(data) * part // 10])
    refused(phiconv.open_model, path, says="not an ONNX model")


def test_truncated_weights(damage, refused):
    path = damage(lambda _: None)
    with (path / "model.onnx.data").open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    refused(phiconv.open_model, path, says="it is truncated")


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", 7, ""])
def test_name_of_the_graph(damage, refused, name):
    path = damage(lambda _: None)
    settings_path = path / "genai_config.json"
    values = json.loads(settings_path.read_text())
    values["model"]["decoder"]["filename"] = name
    settings_path.write_text(json.dumps(values))
    refused(phiconv.open_model, path, says="not the name of a file in the same folder")


@pytest.mark.parametrize("kind", [[], {}, None, "phi\n3"])
def test_type_of_the_model(damage, refused, kind):
    path = damage(lambda _: None)
    (path / "config.json").unlink()
    values = json.loads((path / "genai_config.json").read_text())
    values["model"]["type"] = kind
    (path / "genai_config.json").write_text(json.dumps(values))
    refused(phiconv.open_model, path, says="a model of type")


# -------------------------------------------------------------------------------------------------- any bytes

EDITS = st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=4))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(st.lists(EDITS, min_size=1, max_size=4))
def test_any_bytes_open_or_are_refused(folder, tmp_path, edits):
    target = tmp_path / "fuzz"
    if not target.exists():
        shutil.copytree(folder, target)
    data = bytearray((folder / "model.onnx").read_bytes())
    for at, new in edits:
        start = at % len(data)
        data[start : start + len(new)] = new
    (target / "model.onnx").write_bytes(bytes(data))
    with contextlib.suppress(PhiconvError):
        opened_and_read(target)
