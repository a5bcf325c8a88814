"""Somebody changes an output, its receipt or its source: it is found, and it is said what and where."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

import phiconv
from phiconv.conversion.receipt import receipt_text

GGUF, FOLDER = "x.gguf", "mlx"


@pytest.fixture(scope="module")
def place(model_folder, make_model, tmp_path_factory):
    """Two models, and what they become."""
    root = tmp_path_factory.mktemp("honest")
    shutil.copytree(model_folder("phi3"), root / "model")
    make_model(root / "other/model", "phi3", seed=8)
    phiconv.convert(root / "model", root / GGUF, quant="q8")
    phiconv.convert(root / "model", root / FOLDER, to="mlx", quant="q8")
    phiconv.convert(root / "other/model", root / "other" / GGUF, quant="q8")
    phiconv.convert(root / "model", root / "f16" / "x", to="gguf", quant="f16")
    return root


@pytest.fixture
def scene(place, tmp_path):
    return Scene(shutil.copytree(place, tmp_path / "scene"))


class Scene:
    """A copy of all that, to be tampered with."""

    def __init__(self, root):
        self.root, self.gguf, self.mlx = root, root / GGUF, root / FOLDER
        self.model = root / "model"

    def receipt(self, output):
        return output / "receipt.json" if output.is_dir() else output.with_name(f"{output.name}.receipt.json")

    def edit(self, output, change):
        """Changes a receipt, and writes it as phiconv does."""
        path = self.receipt(output)
        value = json.loads(path.read_bytes())
        change(value)
        path.write_bytes(receipt_text(value))

    def part(self, output, tensor, number=0):
        """Where a part of a tensor is: the file, its first byte, and how many there are."""
        entries = json.loads(self.receipt(output).read_bytes())["predicate"]["runDetails"]["byproducts"]
        part = next(e for e in entries if e["name"] == tensor)["annotations"]["segments"][number]
        folder = output if output.is_dir() else output.parent
        return folder / part["file"], part["offset"], part["length"]

    def cover_up(self, output):
        """Gives a receipt the sums of what is there, as somebody would who knows how."""
        folder = output if output.is_dir() else output.parent

        def change(value):
            for subject in value["subject"]:
                subject["digest"]["sha256"] = sha256((folder / subject["name"]).read_bytes())
            for entry in value["predicate"]["runDetails"]["byproducts"]:
                parts = [
                    self.part(output, entry["name"], n) for n in range(len(entry["annotations"]["segments"]))
                ]
                held = b"".join(p.read_bytes()[start : start + count] for p, start, count in parts)
                entry["digest"]["sha256"] = sha256(held)

        self.edit(output, change)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def flip(path, offset, bit=1):
    data = bytearray(path.read_bytes())
    data[offset] ^= bit
    path.write_bytes(data)


def behind(scene, key, distance):
    flip(scene.gguf, scene.gguf.read_bytes().index(key) + len(key) + distance)


def replace(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def in_tensor(scene, output, tensor, inner, number=0):
    path, offset, length = scene.part(output, tensor, number)
    flip(path, offset + inner % length)


def swap(scene):
    """Two matrices of the same shape change places."""
    path, one, length = scene.part(scene.gguf, "blk.0.attn_qkv.weight")
    _, two, _ = scene.part(scene.gguf, "blk.1.attn_qkv.weight")
    data = bytearray(path.read_bytes())
    data[one : one + length], data[two : two + length] = data[two : two + length], data[one : one + length]
    path.write_bytes(data)


def truncate(scene):
    scene.gguf.write_bytes(scene.gguf.read_bytes()[:-1])


def link(scene):
    (scene.mlx / "config.json").unlink()
    (scene.mlx / "config.json").symlink_to(scene.model / "config.json")


Q = "blk.0.attn_qkv.weight"
MLX_Q = "model.layers.0.self_attn.qkv_proj.weight"

# What somebody does to an output, and what is said of it: the file or tensor, by its name.
OUTPUTS = {
    "a code": (GGUF, lambda s: in_tensor(s, s.gguf, Q, 5), f"x.gguf: tensor {Q}"),
    "a scale": (GGUF, lambda s: in_tensor(s, s.gguf, Q, 0), f"x.gguf: tensor {Q}"),
    "a norm": (GGUF, lambda s: in_tensor(s, s.gguf, "output_norm.weight", 3), "tensor output_norm.weight"),
    "the last byte of a tensor": (GGUF, lambda s: in_tensor(s, s.gguf, "output.weight", -1), "output.weight"),
    "metadata": (
        GGUF,
        lambda s: replace(s.gguf, b"general.name", b"general.nome"),
        "x.gguf: what is no weight",
    ),
    "a number of metadata": (GGUF, lambda s: behind(s, b"phi3.rope.freq_base", 4), "what is no weight"),
    "the tokenizer in a file": (GGUF, lambda s: behind(s, b"tokenizer.ggml.tokens", 29), "what is no weight"),
    "a template in a file": (GGUF, lambda s: behind(s, b"tokenizer.chat_template", 17), "what is no weight"),
    "a score of a token": (GGUF, lambda s: behind(s, b"tokenizer.ggml.scores", 66), "what is no weight"),
    "the magic": (GGUF, lambda s: flip(s.gguf, 0), "x.gguf: what is no weight"),
    "a name of a tensor": (GGUF, lambda s: replace(s.gguf, b"blk.0.attn_qkv", b"blk.0.attn_qkw"), "x.gguf"),
    "two matrices swapped": (GGUF, swap, f"tensor {Q}"),
    "a byte less": (GGUF, truncate, "x.gguf"),
    "a byte more": (GGUF, lambda s: s.gguf.write_bytes(s.gguf.read_bytes() + b"\0"), "x.gguf"),
    "an empty file": (GGUF, lambda s: s.gguf.write_bytes(b""), "x.gguf"),
    "no file": (GGUF, lambda s: s.gguf.unlink(), "x.gguf: is missing"),
    "another model's file": (
        GGUF,
        lambda s: shutil.copy(s.root / "other/x.gguf", s.gguf),
        "tensor output.weight",
    ),
    "another type": (GGUF, lambda s: shutil.copy(next(s.root.glob("f16/x/*.gguf")), s.gguf), "x.gguf"),
    "config.json": (FOLDER, lambda s: replace(s.mlx / "config.json", b"phi3", b"phi4"), "config.json"),
    "the tokenizer": (FOLDER, lambda s: flip(s.mlx / "tokenizer.json", 99), "tokenizer.json"),
    "a chat template, or another setting": (
        FOLDER,
        lambda s: replace(s.mlx / "tokenizer_config.json", b"{", b'{"chat_template": "{{ evil }}", '),
        "tokenizer_config.json",
    ),
    "the template's file": (FOLDER, lambda s: flip(s.mlx / "chat_template.jinja", 9), "template.jinja: is"),
    "the tokenizer's model": (FOLDER, lambda s: flip(s.mlx / "tokenizer.model", 999), "tokenizer.model: is"),
    "codes of MLX": (FOLDER, lambda s: in_tensor(s, s.mlx, MLX_Q, 9), f"tensor {MLX_Q}"),
    "scales of MLX": (FOLDER, lambda s: in_tensor(s, s.mlx, MLX_Q, 9, 1), f"tensor {MLX_Q}"),
    "biases of MLX": (FOLDER, lambda s: in_tensor(s, s.mlx, MLX_Q, 9, 2), f"tensor {MLX_Q}"),
    "the head of safetensors": (
        FOLDER,
        lambda s: replace(s.mlx / "model.safetensors", b'"format":"mlx"', b'"format":"npz"'),
        "model.safetensors: what is no weight",
    ),
    "a file less": (FOLDER, lambda s: (s.mlx / "tokenizer.json").unlink(), "tokenizer.json: is missing"),
    "a file more": (FOLDER, lambda s: (s.mlx / "modeling_phi3.py").touch(), "modeling_phi3.py: is not of"),
    "a renamed file": (
        FOLDER,
        lambda s: (s.mlx / "model.safetensors").rename(s.mlx / "model-1.safetensors"),
        "model.safetensors: is missing",
    ),
    "a link": (FOLDER, link, "config.json: a link out of its folder"),
}  # fmt: skip


def said(found):
    return "\n".join(": ".join(p for p in (f.file, f.at, f.what) if p) for f in found.findings)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output(name, scene):
    output, tamper, says = OUTPUTS[name]
    tamper(scene)
    found = phiconv.verify(scene.root / output)
    assert found.outcome == "differs"
    assert says in said(found)


def subject(value, change):
    value["subject"][0].update(change)


def tensor(value, **change):
    value["predicate"]["runDetails"]["byproducts"][0].update(change)


def segment(value, **change):
    value["predicate"]["runDetails"]["byproducts"][0]["annotations"]["segments"][0].update(change)


def overlap(value):
    entries = value["predicate"]["runDetails"]["byproducts"]
    largest = max(entries, key=lambda e: e["annotations"]["segments"][0]["length"])["annotations"]["segments"]
    for entry in entries:
        entry["annotations"]["segments"] = largest


NO_SUM = {"sha256": "0" * 64}

# What somebody does to a receipt, and what comes of it.
RECEIPTS = {
    "a file's sum": (lambda v: subject(v, {"digest": NO_SUM}), "differs", "x.gguf: what is no weight"),
    "a tensor's sum": (
        lambda v: tensor(v, digest=NO_SUM),
        "differs",
        "x.gguf.receipt.json: tensor output.weight",
    ),
    "a tensor's place": (lambda v: segment(v, offset=1 << 40), "differs", "tensor output.weight"),
    "tensors on each other": (overlap, "unknown", "tensors that lie over each other"),
    "a tensor in no file": (lambda v: segment(v, file="y"), "unknown", "is no file of the output"),
    "a file elsewhere": (
        lambda v: subject(v, {"name": "../x.gguf"}),
        "unknown",
        "is no name of a file in a folder",
    ),
    "a file's name": (lambda v: subject(v, {"name": "y.gguf"}), "unknown", "is no file of the output"),
    "a key more": (lambda v: v.update(note="trust me"), "unknown", "the key note is none of a receipt's"),
    "a key less": (lambda v: v["predicate"].pop("runDetails"), "unknown", "the key runDetails is missing"),
    "another predicate": (
        lambda v: v.update(predicateType="https://slsa.dev/provenance/v2"),
        "unknown",
        "predicateType",
    ),
    "no sum": (lambda v: subject(v, {"digest": {"sha256": "abc"}}), "unknown", "is no SHA-256 sum"),
    "a number for a text": (lambda v: tensor(v, name=7), "unknown", "must be a text"),
    "an option of another type": (
        lambda v: v["predicate"]["buildDefinition"]["externalParameters"].update(options={"ratio": "x"}),
        "unknown",
        "of another type",
    ),
    "a pattern that takes for ever": (
        lambda v: v["predicate"]["buildDefinition"]["externalParameters"].update(
            options={"tensor_types": ["(a+)+$=Q8_0"]}
        ),
        "unknown",
        "might take long",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECEIPTS)
def test_a_receipt(name, scene):
    change, outcome, says = RECEIPTS[name]
    scene.edit(scene.gguf, change)
    found = phiconv.verify(scene.gguf)
    assert found.outcome == outcome
    assert says in said(found) + found.why


TEXTS = {
    "a space": (lambda text: text.replace(b'"_type"', b' "_type"', 1), "not written as phiconv writes"),
    "a key twice": (lambda text: text.replace(b'"subject"', b'"_type": 1, "subject"', 1), "there twice"),
    "no JSON": (lambda _: b"verified!", "not valid JSON"),
    "a list": (lambda _: b"[]", "must be an object"),
    "nothing": (lambda _: b"", "not valid JSON"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_of_a_receipt(name, scene):
    change, says = TEXTS[name]
    path = scene.receipt(scene.gguf)
    path.write_bytes(change(path.read_bytes()))
    found = phiconv.verify(scene.gguf)
    assert found.outcome == "unknown"
    assert says in found.why


def test_no_receipt_and_that_of_another(scene):
    other = scene.root / "other" / GGUF
    found = phiconv.verify(scene.gguf, receipt=scene.receipt(other))
    assert found.outcome == "differs"
    assert "tensor output.weight" in said(found)
    moved = scene.gguf.rename(scene.root / "y.gguf")
    assert phiconv.verify(moved).why.startswith("there is no receipt")
    shutil.copy(scene.receipt(scene.gguf), scene.receipt(moved))
    assert "x.gguf: is missing" in said(phiconv.verify(moved))
    found = phiconv.verify(moved, receipt=scene.receipt(scene.gguf))
    assert found.outcome == "differs"
    assert "y.gguf: is called x.gguf in the receipt" in said(found)


# -------------------------------------------------------------------- what nobody sees who has not the source


def weight_within_the_noise(scene):
    """A code moves by one: less than rounding has moved it."""
    path, offset, _ = scene.part(scene.gguf, Q)
    flip(path, offset + 3 * (64 // 32 * 34) + 2 + 7)  # of row 3, behind the scale of its first block


def set_internal(key, text):
    return lambda v: v["predicate"]["buildDefinition"]["internalParameters"].update({key: text})


def set_option(v):
    v["predicate"]["buildDefinition"]["externalParameters"]["options"]["quant"] = "f16"


def set_origin(v):
    v["predicate"]["runDetails"]["byproducts"][0]["annotations"]["from"] = [
        "source/model.safetensors: trained"
    ]


def drop_source(v):
    del v["predicate"]["buildDefinition"]["resolvedDependencies"][0]


# Receipts have the sums of what is there: only making it again tells.
COVERED = {
    "a weight within the noise": (weight_within_the_noise, None, f"x.gguf: tensor {Q}, row 3, byte"),
    "metadata": (lambda s: replace(s.gguf, b"general.name", b"general.nome"), None, "which is no weight"),
    "two matrices": (swap, None, f"x.gguf: tensor {Q}, row 0"),
    "the recipe": (None, set_internal("recipe", "Q4_K_M"), "internalParameters.recipe"),
    "the peers": (
        None,
        set_internal("bytes_of", {"llama.cpp": "9"}),
        "internalParameters.bytes_of.llama.cpp",
    ),
    "an option": (None, set_option, "are made of this source"),
    "an origin": (None, set_origin, "byproducts[0].annotations.from[0]"),
    "a source less": (None, drop_source, "is read, and the receipt does not name it"),
    "a source's weights": (
        lambda s: shutil.copy(s.root / "other/model/model.safetensors", s.model),
        None,
        "source/model.safetensors: is another file than the receipt's",
    ),
    "a source's config.json": (
        lambda s: replace(s.model / "config.json", b"{", b"{ "),
        None,
        "source/config.json: is another file than the receipt's",
    ),
    "a source's tokenizer": (
        lambda s: replace(s.model / "tokenizer.json", b"{", b"{ "),
        None,
        "source/tokenizer.json: is another file than the receipt's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COVERED)
def test_covered_up(name, scene):
    tamper, change, says = COVERED[name]
    if tamper is not None:
        tamper(scene)
        scene.cover_up(scene.gguf)
    if change is not None:
        scene.edit(scene.gguf, change)
    assert phiconv.verify(scene.gguf).outcome == "verified"
    found = phiconv.verify(scene.gguf, source=scene.model)
    assert found.outcome != "verified"
    assert says in said(found)


def test_the_first_row_is_named_with_any_number_of_threads(scene):
    for tensor_name in ("blk.1.ffn_down.weight", Q):
        in_tensor(scene, scene.gguf, tensor_name, 100)
    names = {
        said(phiconv.verify(scene.gguf, source=scene.model, jobs=jobs)).splitlines()[-1] for jobs in (1, 4)
    }
    assert len(names) == 1


def test_the_command_line_has_three_ends(scene):
    from click.testing import CliRunner

    from phiconv.cli import main

    def run(*arguments):
        return CliRunner().invoke(main, ["verify", *map(str, arguments), "--quiet"])

    assert run(scene.gguf, "--source", scene.model).exit_code == 0
    in_tensor(scene, scene.gguf, Q, 5)
    told = run(scene.gguf)
    assert told.exit_code == 3
    assert f"x.gguf: tensor {Q}, bytes" in told.output
    assert json.loads(run(scene.gguf, "--json").stdout)["outcome"] == "differs"
    scene.receipt(scene.gguf).unlink()
    assert run(scene.gguf).exit_code == 4
    assert run(scene.root / "nothing.gguf").exit_code == 1
    assert run(scene.gguf, "--base", scene.model).exit_code == 2
