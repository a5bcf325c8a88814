"""The options of a conversion, which ``convert`` and ``plan`` share."""

from __future__ import annotations

import re
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from phiconv.cli.common import BASE, CONFIG, FOLLOW_LINKS, JSON, LORA, PATH
from phiconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["conversion_options", "size"]

R = TypeVar("R")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(text: str) -> int:
    """Bytes: a number with K, M, G or T behind it, in powers of 1000 as llama.cpp's tools count them."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text, re.IGNORECASE)
    if match is None or not (value := int(float(match[1]) * _UNITS[match[2].upper()])):
        raise click.BadParameter(f"{text!r} is no size; write it like 2G or 500M")
    return value


_PRESETS = {
    "q2": "The runtime's usual 2-bit quantization, where it has one (GGUF, MLX).",
    "q3": "The same in 3 bits.",
    "q4": "The runtime's usual 4-bit quantization.",
    "q5": "5 bits (GGUF, MLX).",
    "q6": "6 bits (GGUF, MLX).",
    "q8": "The runtime's usual 8-bit quantization.",
    "f16": "float16.",
    "bf16": "bfloat16.",
    "f32": "float32.",
}

_ARGUMENTS = (
    click.argument("source", type=PATH),
    click.argument("dest", type=PATH, required=False, metavar="DEST"),
)

_OPTIONS = (
    click.option(
        "--to",
        metavar="FORMAT",
        help="The format, when DEST is a folder: gguf, litert, mlx, onnx, openvino, safetensors, "
        "compressed-tensors, gptq, awq.",
    ),
    click.option(
        "--for",
        "device",
        metavar="NAME",
        help="What runs it, such as ollama, mac or intel-npu, which says format and recipe; "
        "`phiconv choose --for list` shows all names.",
    ),
    *(click.option(f"--{name}", "quant", flag_value=name, help=text) for name, text in _PRESETS.items()),
    click.option(
        "--quant", metavar="NAME", help="A quantization by the runtime's own name, e.g. Q5_1, 4bit-g32, int4."
    ),
    # What llama.cpp's converter and others call them.
    click.option("--outtype", "quant", metavar="NAME", hidden=True),
    click.option("--outfile", "--output", "-o", "outfile", type=PATH, hidden=True),
    click.option("--pure", is_flag=True, help="Every matrix in the recipe's main type."),
    click.option(
        "--tensor-type",
        "tensor_types",
        metavar="REGEX=TYPE",
        multiple=True,
        help="The type of the tensors whose names the pattern is found in.",
    ),
    click.option(
        "--target-size",
        type=size,
        metavar="SIZE",
        help="How large the output may be, e.g. 2.2G: each matrix gets the type that loses least.",
    ),
    click.option(
        "--bpw",
        "bits_per_weight",
        type=click.FloatRange(1, 16),
        metavar="BITS",
        help="The same by bits per weight, e.g. 4.25, the mean over all tensors.",
    ),
    click.option("--output-tensor-type", metavar="TYPE", help="The type of the output matrix."),
    click.option("--token-embedding-type", metavar="TYPE", help="The type of the embedding."),
    click.option("--leave-output-tensor", is_flag=True, help="Do not quantize the output matrix."),
    click.option(
        "--dtype", metavar="TYPE", help="MLX, servers: the type of what is not quantized: f16, bf16, f32."
    ),
    click.option("--match-runtime", is_flag=True, help="Every choice as the runtime's own tool makes it."),
    click.option(
        "--short-context", is_flag=True, help="LongRoPE: for texts within the original context only."
    ),
    click.option("--long-context", is_flag=True, help="LongRoPE: the long factors at every length."),
    click.option(
        "--target",
        metavar="NAME",
        help="What runs it. ONNX: cpu, cuda, dml, webgpu, qnn; LiteRT: cpu (default), gpu.",
    ),
    click.option(
        "--context",
        type=click.IntRange(1, 1 << 30),
        metavar="N",
        help="How many tokens a text may have, where that is fixed: LiteRT (default: 4096, or all that the "
        "model can take), ONNX, --target qnn (a multiple of 64), and GGUF, --modelfile.",
    ),
    click.option(
        "--attention", metavar="NAME", help="ONNX, --target qnn: of which operators: gqa (default), standard."
    ),
    click.option(
        "--layout", metavar="NAME", help="ONNX: whose folder DEST becomes: genai (default), transformers.js."
    ),
    click.option(
        "--accuracy-level", type=click.IntRange(0, 4), help="ONNX: of products, from 0 (float32) to 4 (int8)."
    ),
    click.option(
        "--ratio",
        type=click.FloatRange(0, 1),
        help="OpenVINO: the share of the layers' weights in 4 bits; the rest gets 8.",
    ),
    click.option("--all-layers", is_flag=True, help="OpenVINO, LiteRT: embedding and head in 4 bits, too."),
    click.option("--allow-requantize", is_flag=True, help="Quantize also what is quantized already."),
    click.option(
        "--effort",
        type=click.Choice(["exact", "fast", "best"], case_sensitive=False),
        default="exact",
        show_default=True,
        help="exact: the runtime's own bytes; fast: a quicker search for Q4_K and Q5_K; best: the most "
        "accurate codes that the same format can hold, which takes a text and time.",
    ),
    click.option("--calibration", type=PATH, help="For --effort best: a folder that calibrate wrote."),
    click.option(
        "--text", "texts", type=PATH, multiple=True, help="For --effort best: a text to measure the model on."
    ),
    click.option(
        "--calibration-tokens",
        type=click.IntRange(1, 1 << 30),
        help="For --effort best: about how many tokens of the texts.  [default: 8192]",
    ),
    CONFIG,
    FOLLOW_LINKS,
    LORA,
    BASE,
    click.option(
        "--adapter-only", is_flag=True, help="GGUF: write the adapter by itself, for llama.cpp's --lora."
    ),
    click.option("--text-only", is_flag=True, help="Leave out what lets the model see."),
    click.option(
        "--modelfile",
        is_flag=True,
        help="GGUF: write a Modelfile beside it, with the chat template, for Ollama.",
    ),
    click.option("--plain", is_flag=True, help="Tensors only, no model: a file that no runtime loads."),
    click.option("--repack-only", is_flag=True, help="Refuse to change any weight, even by rounding."),
    click.option("--imatrix", type=PATH, help="An importance matrix."),
    click.option("--ranges", type=PATH, help="ONNX, w8a16 and w4a16: a .json that calibrate wrote."),
    click.option("--split-max-size", type=size, help="Split the output, e.g. 2G."),
    click.option(
        "--receipt/--no-receipt", default=True, help="Write down what DEST was made of, for verify (default)."
    ),
    JSON,
)


def conversion_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the arguments and options to a command, which gets one ``dest``."""

    @wraps(command)
    def wrapper(*, dest: Path | None, outfile: Path | None, **others: Any) -> R:
        return command(dest=_destination(dest, outfile), **others)

    adding: Callable[..., R] = wrapper
    for option in reversed((*_ARGUMENTS, *_OPTIONS)):
        adding = option(adding)
    return adding


def _destination(dest: Path | None, outfile: Path | None) -> Path:
    """DEST, which may be given as an option."""
    if dest is not None and outfile is not None and dest != outfile:
        raise UsageError(f"--outfile {outfile} is not DEST, {dest}", hint="give one of them")
    found = dest or outfile
    if found is None:
        raise UsageError("DEST is missing", hint="write phiconv SOURCE DEST, such as phiconv model x.gguf")
    return found
