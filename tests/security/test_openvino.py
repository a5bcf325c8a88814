"""Hostile OpenVINO models: each is refused with one line that names the file and what is wrong in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phiconv
from paths import FIXTURES
from phiconv.errors import InputError, MalformedFileError, MissingFileError, UnsupportedModelError

HUGE = 10**17

BOMB = (
    '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    + ']><net name="&j;" version="11"/>'
)


def net(layers="", edges=""):
    return f'<net name="x" version="11"><layers>{layers}</layers><edges>{edges}</edges></net>'


def layer(number, kind, ports="", data="", name="w"):
    data = f"<data {data}/>" if data else ""
    return f'<layer id="{number}" name="{name}" type="{kind}" version="opset1">{data}{ports}</layer>'


def ports(inputs, output=None):
    ends = "".join(f'<port id="{i}"/>' for i in range(inputs))
    out = f'<output><port id="{inputs}"/></output>' if output is None else ""
    return f"<input>{ends}</input>{out}" if inputs else out


def const(shape="4, 4", kind="f32", offset=0, size=64, number=0, name="w"):
    data = f'element_type="{kind}" shape="{shape}" offset="{offset}" size="{size}"'
    return layer(number, "Const", ports(0), data, name)


def edge(source, target, port=0, source_port=0):
    return f'<edge from-layer="{source}" from-port="{source_port}" to-layer="{target}" to-port="{port}"/>'


def chain(constant, transpose="true"):
    """A constant, and the product that uses it."""
    x = layer(1, "Parameter", ports(0))
    product = layer(2, "MatMul", ports(2), f'transpose_a="false" transpose_b="{transpose}"', "MatMul_2")
    return net(constant + x + product, edge(1, 2, 0) + edge(0, 2, 1))


def long_chain(count):
    layers = [const(), *(layer(i, "Convert", ports(1)) for i in range(1, count))]
    edges = [edge(i - 1, i, 0, int(i > 1)) for i in range(1, count)]
    return net("".join(layers), "".join(edges))


DOCUMENTS = {
    "nothing": ("", "no XML"),
    "zeros": ("\0" * 100, "no XML"),
    "truncated": (chain(const())[:-30], "no XML"),
    "another document": ("<svg></svg>", "its first element is <svg>, not <net>"),
    "an element of escapes": ("<net\x1b[2J/>", "no XML"),
    "version 9": ('<net name="x" version="9"/>', "an IR of version '9'"),
    "no version": ("<net/>", "an IR of version ''"),
    "doctype": ("<!DOCTYPE net><net/>", "DOCTYPE"),
    "entities": (BOMB, "DOCTYPE"),
    "a file from outside": ('<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><x>&f;</x>', "DOCTYPE"),
    "parameter entities": ('<!DOCTYPE x [<!ENTITY % p "x"> %p;]><x/>', "DOCTYPE"),
    "an unknown entity": ('<net name="&x;" version="11"/>', "no XML"),
    "deep": ('<net version="11">' + "<a>" * 100_000, "32 one inside the other"),
    "wide": ('<net version="11">' + "<a/>" * 310_000 + "</net>", "more than 300000 elements"),
    "large": ('<net version="11">' + " " * (17 << 20), "bytes, and an IR at most"),
    "many layers": (net('<layer id="1"/>' * 2), "two layers have the id 1"),
    "no id": (net("<layer/>"), "id of an element <layer>: not a whole number"),
    "negative id": (net('<layer id="-1"/>'), "not a whole number: -1"),
    "an id of digits": (net(f'<layer id="{"9" * 100_000}"/>'), "not a whole number"),
    "an id in Arabic": (net('<layer id="٣"/>'), "not a whole number"),
    "nothing in it": (net(), "no operation of this graph uses a weight"),
    "an edge from nothing": (net(layer(1, "Result", ports(1, 0)), edge(7, 1)), "from port 0 of layer 7"),
    "an edge to nothing": (net(const(), edge(0, 7)), "to port 0 of layer 7"),
    "an edge to a port of nothing": (chain(const()).replace('to-port="1"', 'to-port="5"'), "to port 5"),
    "an edge from a port of nothing": (
        chain(const()).replace('<edge from-layer="0" from-port="0"', '<edge from-layer="0" from-port="3"'),
        "from port 3 of layer 0",
    ),
    "two edges": (chain(const()).replace('to-port="0"', 'to-port="1"'), "an input with two edges"),
    "no edges": (re.sub("<edge .*?/>", "", chain(const())), "no edge leads to its input port"),
    "a cycle": (
        net(
            layer(1, "Convert", ports(1)) + layer(2, "Convert", ports(1)), edge(1, 2, 0, 1) + edge(2, 1, 0, 1)
        ),
        "its layers form a cycle",
    ),
    "a layer that feeds itself": (net(layer(1, "Convert", ports(1)), edge(1, 1, 0, 1)), "form a cycle"),
    "a long chain": (long_chain(5_000), "no operation of this graph uses a weight"),
    "offset beyond the file": (chain(const(offset=4096)), "bytes 4096 to 4160 are not in m.bin"),
    "huge offset": (chain(const(offset=HUGE)), "are not in m.bin"),
    "negative offset": (chain(const(offset=-64)), "offset: not a whole number: -64"),
    "an overlap": (chain(const() + const(offset=32, number=3, name="v")), "v: overlaps constant w"),
    "no offset": (chain(const()).replace('offset="0"', ""), "offset: not a whole number"),
    "another size": (chain(const(size=60)), "60 bytes are not the size of shape [4, 4] in f32"),
    "huge shape": (chain(const(f"{HUGE}, {HUGE}", size=0)), "are not the size"),
    "shape that wraps": (chain(const(f"{2**32}, {2**32}", size=0)), "are not the size"),
    "negative shape": (chain(const("-4, -4")), "shape: not a whole number: -4"),
    "many dimensions": (chain(const("1, " * 100_000 + "1", size=4)), "are not the size"),
    "unknown type": (chain(const(kind="f7")), "element type 'f7'"),
    "a type of escapes": (chain(const(kind="&#133;" * 3000)), "which phiconv does not know"),
    "integers as weights": (chain(const(kind="i32")), "in a way that phiconv does not read: i32 [4, 4]"),
    "codes without scales": (chain(const(kind="u4", size=8)), "in a way that phiconv does not read"),
    "8-bit floats": (chain(const(kind="f8e5m2", size=16)), "in a way that phiconv does not read: f8e5m2"),
    "no columns": (chain(const("4, 0", size=0)), "in a way that phiconv does not read"),
    "stored by columns": (chain(const(), "false"), "is stored by columns"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_that_are_refused(tmp_path, refused, name):
    document, says = DOCUMENTS[name]
    (tmp_path / "m.xml").write_text(document, encoding="utf-8")
    (tmp_path / "m.bin").write_bytes(bytes(4096))
    refused(phiconv.open_model, tmp_path / "m.xml", says=says)


def test_the_document_that_the_others_are_made_of_is_read(tmp_path):
    (tmp_path / "m.xml").write_text(chain(const()), encoding="utf-8")
    (tmp_path / "m.bin").write_bytes(bytes(64))
    assert phiconv.open_model(tmp_path / "m.xml").stored["w"].shape == (4, 4)


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_missing_and_special_files(tmp_path, refused, suffix):
    (tmp_path / "m.xml").write_text(chain(const()), encoding="utf-8")
    (tmp_path / "m.bin").write_bytes(bytes(64))
    (tmp_path / f"m{suffix}").unlink()
    refused(phiconv.open_model, tmp_path / "m.xml", says="no such file", kind=MissingFileError)
    os.mkfifo(tmp_path / f"m{suffix}")
    refused(phiconv.open_model, tmp_path / "m.xml", says="a device or a pipe")


# ---------------------------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("openvino") / "m"
    phiconv.convert(FIXTURES / "tiny-phi4mini", path, to="openvino", quant="int4-asym-g32")
    return path


def changed(folder, target, change):
    """A copy of the files that are read, with another document."""
    target.mkdir(exist_ok=True)
    for name in ("openvino_model.bin", "config.json"):
        if not (target / name).exists():
            os.link(folder / name, target / name)
    text = (folder / "openvino_model.xml").read_text(encoding="utf-8")
    (target / "openvino_model.xml").write_text(change(text), encoding="utf-8")
    return target


DOWN = "model.layers.0.mlp.down_proj.weight"
FAULTS = {
    "a name that no model has": (lambda x: x.replace(f'"{DOWN}"', '"adapter.weight"'), "is missing"),
    "one name for two": (
        lambda x: x.replace("layers.1.mlp.down", "layers.0.mlp.down"),
        "two constants are this",
    ),
    "a layer too few": (lambda x: x.replace("layers.3.", "layers.9."), "this tensor is missing"),
    "zero points of another type": (
        lambda x: re.sub(
            rf'(name="{DOWN}/zero_point".*?element_type=")u4', r"\1nf4", x, count=1, flags=re.DOTALL
        ),
        "in a way that phiconv does not read",
    ),
    "groups of another shape": (
        lambda x: re.sub(
            rf'(name="{DOWN}/scale".*?shape=")(\d+), (\d+), 1', r"\g<1>\3, \2, 1", x, flags=re.DOTALL
        ),
        "in a way that phiconv does not read",
    ),
    "a product twice": (
        lambda x: x.replace('type="Subtract"', 'type="Multiply"', 1),
        "this tensor is missing",
    ),
    "another operation": (lambda x: x.replace('type="Subtract"', 'type="Add"'), "this tensor is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_models_that_are_refused(tmp_path, refused, folder, fault):
    change, says = FAULTS[fault]
    refused(phiconv.open_model, changed(folder, tmp_path / "m", change), says=says)


def test_a_config_of_another_model(tmp_path, refused, folder):
    changed(folder, tmp_path / "m", str)
    (tmp_path / "m" / "config.json").unlink()
    shutil.copy(FIXTURES / "tiny-phi3" / "config.json", tmp_path / "m")
    refused(phiconv.open_model, tmp_path / "m", says="but the configuration asks for")
    (tmp_path / "m" / "config.json").unlink()
    refused(phiconv.open_model, tmp_path / "m", says="no config.json", kind=MissingFileError)


def test_a_graph_that_is_no_language_model(refused, folder):
    refused(
        phiconv.open_model,
        folder / "openvino_tokenizer.xml",
        says="no operation of this graph uses a weight",
        kind=UnsupportedModelError,
    )


def test_a_truncated_bin_says_so(tmp_path, refused, folder):
    changed(folder, tmp_path / "m", str)
    binary = tmp_path / "m" / "openvino_model.bin"
    content = binary.read_bytes()
    binary.unlink()
    binary.write_bytes(content[: len(content) // 2])
    error = refused(phiconv.open_model, tmp_path / "m", says="download", kind=MalformedFileError)
    assert "are not in openvino_model.bin" in str(error)


@pytest.fixture(scope="module")
def small(tmp_path_factory, make_model):
    """One layer, with all that a chain can have."""
    path = tmp_path_factory.mktemp("openvino")
    make_model(path / "s", "phi3", seed=7, num_hidden_layers=1)
    phiconv.convert(path / "s", path / "m", to="openvino", quant="int4-asym-g32")
    return path / "m"


TOKENS = st.sampled_from([
    *("u4", "u8", "i4", "nf4", "f4e2m1", "f16", "f32", "i64", "-1", "0", "1", "7", str(2**63), "true", ""),
    *("MatMul", "Gather", "Const", "Convert", "Reshape", "Subtract", "Multiply", "64", "4096"),
])  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_any_change_opens_or_is_refused(tmp_path, small, data):
    """Values of attributes are exchanged, elements are cut out, bytes are changed."""

    def change(text):
        values = list(re.finditer('(?<==")[^"]*', text))
        for _ in range(data.draw(st.integers(1, 3))):
            found = values[data.draw(st.integers(0, len(values) - 1))]
            text = text[: found.start()] + data.draw(TOKENS) + text[found.end() :]
            values = list(re.finditer('(?<==")[^"]*', text))
        if data.draw(st.booleans()):
            elements = list(re.finditer("<(port|edge|data) [^>]*/>", text))
            found = elements[data.draw(st.integers(0, len(elements) - 1))]
            text = text[: found.start()] + text[found.end() :]
        if data.draw(st.booleans()):
            text = text[: data.draw(st.integers(0, len(text)))]
        return text

    path = changed(small, tmp_path / "m", change)
    with contextlib.suppress(InputError):
        model = phiconv.open_model(path)
        for tensor in model.tensors.values():
            phiconv.read(tensor, 0, 1)
            phiconv.read(tensor, tensor.rows - 1, tensor.rows)
