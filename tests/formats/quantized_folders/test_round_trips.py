"""Folders that phiconv writes for servers, read again: the same bytes come of them."""

from __future__ import annotations

import pytest

import phiconv


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("target", "quant"),
    [
        ("gptq", "4bit-g32"),
        ("gptq", "4bit-v2-g64"),
        ("gptq", "8bit-g128"),
        ("gptq", "4bit-channel"),
        ("awq", "4bit-g32"),
        ("awq", "4bit-g128"),
    ],
)
@pytest.mark.parametrize("kind", ["phi3", "phimoe"])
def test_gptq_and_awq_again(make_base, tmp_path, kind, target, quant):
    first, second = tmp_path / "first", tmp_path / "second"
    phiconv.convert(make_base(tmp_path / "base", kind), first, to=target, quant=quant)
    made = phiconv.convert(first, second, to=target, quant=quant, repack_only=True)
    action = "repacked" if "v2" in quant else "copied"
    assert {t.action for t in made.plan.tensors if t.stored.bits_per_weight < 16} == {action}
    assert weights(second) == weights(first)


# What is written, what it goes through, and how it becomes the same again.
ROUNDS = {
    "asymmetric through onnx": ("compressed-tensors", "w4a16-asym-g32", "onnx", "int4-asym"),
    "symmetric through onnx": ("compressed-tensors", "w4a16-g32", "onnx", "int4"),
    "awq through onnx": ("awq", "4bit-g32", "onnx", "int4-asym"),
    "gptq through onnx": ("gptq", "4bit-g32", "onnx", "int4"),
    "symmetric through gguf": ("compressed-tensors", "w4a16-g32", "gguf", "Q4_0"),
    "8 bits through gguf": ("compressed-tensors", "w8a16-g32", "gguf", "Q8_0"),
    "awq through openvino": ("awq", "4bit-g32", "openvino", "int4-asym-g32"),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_through_another_format_and_back(make_base, tmp_path, name):
    target, quant, through, recipe = ROUNDS[name]
    middle_name = "middle.gguf" if through == "gguf" else "middle"
    first, middle, last = (tmp_path / part for part in ("first", middle_name, "last"))
    base, keep = make_base(tmp_path / "base"), phiconv.Choices(dtype="bf16")
    phiconv.convert(base, first, to=target, quant=quant, choices=keep)
    made = phiconv.convert(first, middle, to=through)
    assert made.plan.recipe == recipe
    quantized = [t for t in made.plan.tensors if t.stored.bits_per_weight < 16]
    assert {t.action for t in quantized} == {"repacked"}
    phiconv.convert(middle, last, to=target, quant=quant, choices=keep)
    assert weights(last) == weights(first)


def test_q4_0_to_gptq_and_back(make_base, tmp_path):
    first, folder, last = tmp_path / "a.gguf", tmp_path / "folder", tmp_path / "b.gguf"
    pure = phiconv.Choices(pure=True)
    phiconv.convert(make_base(tmp_path / "base"), first, quant="Q4_0", choices=pure)
    phiconv.convert(first, folder, to="gptq", quant="4bit-g32")
    made = phiconv.convert(folder, last)
    assert made.plan.recipe == "Q4_0"
    a, b = (phiconv.open_model(path) for path in (first, last))
    for name, tensor in a.stored.items():
        if tensor.encoding.name == "q4_0" and name.startswith("blk."):
            x, y = tensor.read(0, tensor.rows), b.stored[name].read(0, tensor.rows)
            assert (x.codes == y.codes).all()
            assert (x.scales == y.scales).all()
