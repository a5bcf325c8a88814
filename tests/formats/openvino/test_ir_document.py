"""IR documents: layers, ports, edges, and constants in one file."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from phiconv_formats.openvino.ir_document import PRECISIONS, Document


def parsed(document, **rt_info):
    return ET.fromstring(document.xml(rt_info))  # noqa: S314 - our own


def test_a_graph_of_two_layers():
    document = Document("small")
    x = document.one("Parameter", (), "f32", name="x", shape="?,2", element_type="f32")
    w = document.constant(bytes(8), "f32", [2])
    low, high = document.layer(
        "Two", [x, w], ["f32", "i64"], version="opset9", tensor_names=["a", "b"], k="1"
    )
    assert (x, w, low, high) == ((0, 0), (1, 0), (2, 2), (2, 3))
    assert document.layer("Result", [high], ()) == []
    net = parsed(document, note="n")
    assert net.attrib == {"name": "small", "version": "11"}
    two = net.findall("layers/layer")[2]
    assert two.attrib == {"id": "2", "name": "Two_2", "type": "Two", "version": "opset9"}
    assert two.find("data").attrib == {"k": "1"}
    assert [port.get("id") for port in two.findall("input/port")] == ["0", "1"]
    assert [tuple(port.attrib.values()) for port in two.findall("output/port")] == [
        ("2", "FP32", "a"),
        ("3", "I64", "b"),
    ]
    assert [tuple(map(int, edge.attrib.values())) for edge in net.findall("edges/edge")] == [
        (0, 0, 2, 0),
        (1, 0, 2, 1),
        (2, 3, 3, 0),
    ]
    assert net.find("rt_info/note").get("value") == "n"
    assert document.xml({}) == document.xml({})  # writing changes nothing


def test_equal_constants_are_stored_once_and_room_is_made_for_others():
    document = Document("constants")
    document.constant(b"abc", "u8", [3])
    offset = document.reserve(10, alignment=16)
    document.reserved(offset, 10, "u4", [20])
    document.constant(b"abc", "u8", [3])
    document.constant(b"", "u8", [0])
    document.constant(b"de", "u8", [2])
    assert offset == 16
    assert document.size == 28
    assert document.binary() == b"abc" + bytes(23) + b"de"
    assert document.chunks() == [(0, b"abc"), (26, b""), (26, b"de")]
    constants = [layer.find("data") for layer in parsed(document).findall("layers/layer")]
    assert [(c.get("offset"), c.get("size"), c.get("shape")) for c in constants] == [
        ("0", "3", "3"),
        ("16", "10", "20"),
        ("0", "3", "3"),
        ("26", "0", "0"),
        ("26", "2", "2"),
    ]


def test_element_types_are_known():
    assert PRECISIONS["f16"] == "FP16"
    with pytest.raises(KeyError):
        Document("x").constant(b"", "f99")
