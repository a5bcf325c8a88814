"""Paths that people give and that are no model: each kind made in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import phiconv
from paths import FIXTURES

__all__ = ["KINDS"]

TINY = FIXTURES / "tiny-phi3"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4972489328\n"
PAGE = b"<!DOCTYPE html><html><title>Access denied</title></html>"


def whole(folder: Path, *, weights: bool = True) -> Path:
    """A model folder, its weights only linked."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in TINY.iterdir():
        if file.suffix in {".json", ".model"}:
            shutil.copy(file, folder)
    if weights:
        os.link(TINY / "model.safetensors", folder / "model.safetensors")
    return folder


def change(folder: Path, **values: object) -> Path:
    """The folder with other values in config.json; None takes a key out."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8")
    return folder


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]], *, lacking: int = 0) -> Path:
    """A file of tensors that are 0, the last bytes left out."""
    header, at = {}, 0
    width = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
    for name, (dtype, shape) in tensors.items():
        size = width[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at - lacking))
    return path


def gguf(path: Path, architecture: str, *, tensors: bool = True) -> Path:
    """A GGUF by the gguf package."""
    import gguf as package
    import numpy as np

    writer = package.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    if tensors:
        writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
        writer.add_tensor("blk.0.ssm_a", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def instead(content: bytes, name: str):
    """Makes something that stands in place of a file, of a folder's or by itself."""

    def make(folder: Path) -> Path:
        if name.endswith(".json"):
            (whole(folder / "m") / name).write_bytes(content)
            return folder / "m"
        if name.startswith("model.") and "bin" not in name:
            (whole(folder / "m", weights=False) / name).write_bytes(content)
            return folder / "m" if name.endswith("safetensors") else folder / "m" / name
        (folder / name).write_bytes(content)
        return folder / name

    return make


def files(*names: str, config: bool = False):
    """Makes a folder with empty files of these names."""

    def make(folder: Path) -> Path:
        target = folder / "m"
        target.mkdir()
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(b"\x80\x02}.")
        if config:
            shutil.copy(TINY / "config.json", target)
        return target

    return make


def quantized(method: str, tensors: dict[str, tuple[str, list[int]]]):
    """Makes a checkpoint that another tool has quantized."""

    def make(folder: Path) -> Path:
        target = whole(folder / "m", weights=False)
        layer = "model.layers.0.mlp.down_proj."
        safetensors(target / "model.safetensors", {layer + name: t for name, t in tensors.items()})
        return change(target, quantization_config={"quant_method": method, "bits": 4})

    return make


def adapter(*, config: bool, weights: bool):
    """Makes a LoRA adapter's folder."""

    def make(folder: Path) -> Path:
        target = folder / "m"
        if config:
            whole(target, weights=weights)
        target.mkdir(exist_ok=True)
        name = "base_model.model.model.layers.0.self_attn.o_proj.lora_"
        tensors = {f"{name}{x}.weight": ("F32", [4, 4]) for x in "AB"}
        safetensors(target / "adapter_model.safetensors", tensors)
        (target / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "o/b"}')
        return target

    return make


def cut(keep: float, name: str = "", *, source: str = "tiny-phi3/model.safetensors", shown: str = ""):
    """Makes a file that ends too soon, with what belongs beside it.

    Args:
        keep: How much of it is left.
        name: A file that phiconv makes of the model; "" for a file of fixtures/.
        source: That file.
        shown: The file that is given, where that is another one.
    """

    def make(folder: Path) -> Path:
        target = folder / "m"
        if name:
            target.mkdir()
            phiconv.convert(TINY, target / name.removesuffix(".data").replace(".bin", ".xml"), quant="q8")
        else:
            shutil.copytree((FIXTURES / source).parent, target, ignore=shutil.ignore_patterns("*.npz"))
        path = target / (name or Path(source).name)
        os.truncate(path, int(path.stat().st_size * keep))
        return target / (shown or path.name)

    return make


def checkpoints(folder: Path) -> Path:
    for step in (500, 1000):
        whole(folder / "out" / f"checkpoint-{step}", weights=False)
    return folder / "out"


def hub_cache(folder: Path) -> Path:
    whole(folder / "hub" / "models--org--name" / "snapshots" / ("a" * 40), weights=False)
    (folder / "hub" / "models--org--name" / "blobs").mkdir()
    return folder / "hub"


def zero3(folder: Path) -> Path:
    target = whole(folder / "m", weights=False)
    names = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    safetensors(target / "model.safetensors", {name: ("BF16", [0]) for name in names})
    return target


def archive(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.zip", "w") as file:
        file.writestr("model/config.json", "{}")
    return folder / "model.zip"


def text(folder: Path) -> Path:
    (folder / "notes.txt").write_text("hello\n" * 20)
    return folder / "notes.txt"


def link(folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to(folder / "gone")
    return folder / "model.safetensors"


def loop(folder: Path) -> Path:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.gguf")
    return folder / "model.gguf"


def pipe_in_folder(folder: Path) -> Path:
    os.mkfifo(whole(folder / "m", weights=False) / "model.safetensors")
    return folder / "m"


def forbidden(folder: Path) -> Path:
    path = gguf(folder / "x.gguf", "phi3")
    path.chmod(0)
    return path


def forbidden_folder(folder: Path) -> Path:
    whole(folder / "m").chmod(0)
    return folder / "m"


def in_folder(name: str):
    """Makes a folder of this name, which is a file's."""

    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        (folder / name / "readme.txt").touch()
        return folder / name

    return make


def missing_shard(folder: Path) -> Path:
    target = whole(folder / "m", weights=False)
    safetensors(target / "model-00001-of-00002.safetensors", {"model.norm.weight": ("F32", [256])})
    shards = {w: f"model-0000{n}-of-00002.safetensors" for n, w in ((1, "model.norm.weight"), (2, "x"))}
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return target


def without(key: str):
    """Makes a model whose config.json lacks a key."""
    return lambda folder: change(whole(folder / "m"), **{key: None})


def says(**values: object):
    """Makes a model whose config.json says something else."""
    return lambda folder: change(whole(folder / "m"), **values)


# Of each kind: how it is made, and the code of the error; with another one for a single command, "" for none.
KINDS = {
    "missing": (lambda _: Path("nowhere/model.gguf"), "missing_file"),
    "missing folder": (lambda _: Path("nowhere"), "missing_file"),
    "hub id": (lambda _: Path("microsoft/phi-4"), "missing_file"),
    "address": (lambda _: Path("https://huggingface.co/microsoft/phi-4"), "missing_file"),
    "home of nobody": (lambda _: Path("~nobody-of-this-name/m"), "missing_file"),
    "name too long": (lambda _: Path("x" * 5000 + ".gguf"), "bad_input"),
    "empty folder": (files(), "missing_file"),
    "pointer safetensors": (instead(POINTER, "model.safetensors"), "malformed_file"),
    "pointer gguf": (instead(POINTER, "x.gguf"), "malformed_file"),
    "pointer bin": (instead(POINTER, "pytorch_model.bin"), "malformed_file"),
    "pointer onnx": (instead(POINTER, "model.onnx"), "malformed_file"),
    "pointer xml": (instead(POINTER, "openvino_model.xml"), "malformed_file"),
    "pointer config": (instead(POINTER, "config.json"), "malformed_file"),
    "pointer tokenizer": (instead(POINTER, "tokenizer.json"), "malformed_file"),
    "page safetensors": (instead(PAGE, "model.safetensors"), "malformed_file"),
    "page gguf": (instead(PAGE, "x.gguf"), "malformed_file"),
    "page bin": (instead(PAGE, "pytorch_model.bin"), "malformed_file"),
    "page config": (instead(PAGE, "config.json"), "malformed_file"),
    "page tokenizer": (instead(PAGE, "tokenizer.json"), "malformed_file"),
    "hub cache": (hub_cache, "missing_file"),
    "model in the hub cache": (lambda folder: hub_cache(folder) / "models--org--name", "missing_file"),
    "checkpoints": (checkpoints, "missing_file"),
    "level too many": (lambda folder: whole(folder / "m" / "m").parent, "missing_file"),
    "fsdp": (files("__0_0.distcp", ".metadata"), "missing_file"),
    "fsdp with config": (files("pytorch_model_fsdp_0/__0_0.distcp", config=True), "missing_file"),
    "deepspeed": (files("zero_to_fp32.py", "latest", "global_step5/x.pt"), "missing_file"),
    "deepspeed with config": (files("zero_to_fp32.py", "latest", config=True), "missing_file"),
    "lightning": (files("epoch=1-step=5.ckpt", "hparams.yaml"), "missing_file"),
    "zero3": (zero3, "malformed_file"),
    "adapter": (adapter(config=False, weights=False), "unsupported_model"),
    "adapter with config": (adapter(config=True, weights=False), "unsupported_model"),
    "adapter beside its base": (adapter(config=True, weights=True), "unsupported_model"),
    "gptq": (quantized("gptq", {"qweight": ("I32", [8, 8]), "scales": ("F16", [2, 8])}), "malformed_file"),
    "awq": (quantized("awq", {"qweight": ("I32", [8, 8]), "qzeros": ("I32", [2, 8])}), "malformed_file"),
    "bitsandbytes": (
        quantized("bitsandbytes", {"weight": ("U8", [64, 1]), "weight.absmax": ("F32", [2])}),
        "malformed_file",
    ),
    "fp8": (
        quantized("fp8", {"weight": ("F8_E4M3", [8, 8]), "weight_scale_inv": ("F32", [1, 1])}),
        "malformed_file",
    ),
    "compressed-tensors": (
        quantized("compressed-tensors", {"weight_packed": ("I32", [8, 8])}),
        "malformed_file",
    ),
    "hqq": (quantized("hqq", {"W_q": ("U8", [8, 8]), "meta": ("F32", [1])}), "unsupported_model"),
    "quanto": (quantized("quanto", {"weight._data": ("I8", [8, 8])}), "unsupported_model"),
    "eetq": (quantized("eetq", {"weight": ("I8", [8, 8])}), "unsupported_model"),
    "gguf of another family": (
        lambda folder: gguf(folder / "x.gguf", "mamba"),
        {"inspect": "", "plan": "", "convert": "", "compare": "", "evaluate": "unsupported_model"},
    ),
    "vocabulary": (
        lambda folder: gguf(folder / "x.gguf", "phi3", tensors=False),
        {"inspect": "", "*": "malformed_file", "compare": "bad_input", "evaluate": "unsupported_model"},
    ),
    "gguf without keys": (lambda folder: gguf(folder / "x.gguf", "phi3"), "bad_config"),
    "config alone": (lambda folder: whole(folder / "m", weights=False), "missing_file"),
    "config file": (lambda folder: whole(folder / "m") / "config.json", "bad_input"),
    "tokenizer file": (lambda folder: whole(folder / "m") / "tokenizer.json", "bad_input"),
    "unknown architecture": (
        says(architectures=["Mamba"], model_type="mamba"),
        "unsupported_model",
    ),
    "config without a key": (without("hidden_size"), "bad_config"),
    "unknown rope": (says(rope_scaling={"type": "yarn", "factor": 2}), "bad_config"),
    "missing tensor": (says(num_hidden_layers=7), "malformed_file"),
    "misshaped tensor": (says(vocab_size=2000), "bad_config"),
    "missing shard": (missing_shard, "missing_file"),
    "text": (text, "bad_input"),
    "zip": (archive, "malformed_file"),
    "folder named as a gguf": (in_folder("x.gguf"), "missing_file"),
    "folder named as safetensors": (in_folder("model.safetensors"), "missing_file"),
    "broken link": (link, "missing_file"),
    "link to itself": (loop, "missing_file"),
    "pipe": (pipe, "bad_input"),
    "pipe in a folder": (pipe_in_folder, "bad_input"),
    "device": (lambda _: Path("/dev/zero"), "bad_input"),
    "nothing": (lambda _: Path("/dev/null"), "bad_input"),
    "forbidden file": (forbidden, "bad_input"),
    "forbidden folder": (forbidden_folder, "bad_input"),
    "cut safetensors": (cut(0.5), "malformed_file"),
    "cut safetensors header": (cut(1e-4), "malformed_file"),
    "cut safetensors length": (cut(1e-7), "malformed_file"),
    "cut gguf": (cut(0.5, "x.gguf"), "malformed_file"),
    "cut gguf header": (cut(0.001, "x.gguf"), "malformed_file"),
    "cut bin": (cut(0.5, source="pytorch/state_dict.pth"), "malformed_file"),
    "cut onnx": (cut(0.5, "model.onnx"), "malformed_file"),
    "cut onnx weights": (cut(0.5, "model.onnx.data", shown="model.onnx"), "malformed_file"),
    "cut xml": (cut(0.5, "model.xml"), "malformed_file"),
    "cut openvino weights": (cut(0.5, "model.bin", shown="model.xml"), "malformed_file"),
}
"""Paths that are refused, by what they are."""
