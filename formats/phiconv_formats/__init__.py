"""Bytes on disk: one module or package per format, and the one list of them.

A reader turns a path into a `phiconv.ir.model.Checkpoint`; a writer turns a `phiconv.ir.model.Model` into a
`phiconv_formats.shared.output.Package`, which the pipeline carries out. Formats are imported when first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from phiconv.errors import InputError, MissingFileError, UsageError
from phiconv.spelling import did_you_mean, known_as
from phiconv_formats.recognition import (
    format_of_content,
    has_original_weights,
    is_there,
    what_is_missing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from phiconv.ir import Encoding
    from phiconv.ir.importance import ImportanceMatrix
    from phiconv.ir.model import Checkpoint, Model
    from phiconv_formats.shared.output import OutputTensor, Package, RuntimeSettings

__all__ = ["FORMATS", "Format", "Reader", "Writer", "find_reader", "find_target"]


class Reader(Protocol):
    """Opens a path of its format; reads no weight."""

    def __call__(self, path: Path, companions: Path | None = None) -> Checkpoint:
        """Opens ``path``; see `phiconv.errors.InputError` for what may be wrong with it.

        config.json and the tokenizer are looked for in the folder ``companions``, if there is one, and else
        where the weights are.
        """


class Writer(Protocol):
    """Lays out a file of its format; reads no weight."""

    def tensors(self, model: Model) -> list[OutputTensor]:
        """What the runtime wants stored, in the order of the file."""

    def package(
        self,
        model: Model,
        tensors: Sequence[OutputTensor],
        encodings: Sequence[Encoding],
        *,
        file_name: str,
        recipe: str,
        split_max_size: int | None = None,
        importance: ImportanceMatrix | None = None,
        settings: RuntimeSettings | None = None,
    ) -> Package:
        """The whole output, but for the weights."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format by name.

    Attributes:
        name: What ``--to`` takes.
        title: What it is.
        suffixes: File names that end so are of this format; none for a format that is a folder.
        reader: Imports and returns its reader; None if it cannot be read.
        writer: Imports and returns its writer; None if it cannot be written.
        folder: A destination that is no such file becomes a folder as a whole, whose files have names of
            their own; else the file in it is named after the model.
        file_suffix: A destination that ends so is the main file of an output; "" where there is none.
        other_suffix: So is one that ends so: the graph without what is around it; "" where there is none.
        folder_files: A folder that has one of these files, and no weights in safetensors, is of this format;
            none where no file tells.
        inner_files: So is one with files of this pattern, and no original weights at all.
        sees: The kinds of multimodal models (`phiconv.ir.senses.Senses.kind`) whose encoders it has a place
            for, those of pictures at least, because its runtime can use them.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    reader: Callable[[], Reader] | None = None
    writer: Callable[[], Writer] | None = None
    folder: bool = False
    file_suffix: str = ""
    other_suffix: str = ""
    folder_files: tuple[str, ...] = ()
    inner_files: str = ""
    sees: tuple[str, ...] = ()

    @property
    def file_suffixes(self) -> tuple[str, ...]:
        """The suffixes that a destination may have which is a file."""
        return tuple(filter(None, (self.file_suffix, self.other_suffix)))


def _huggingface_reader() -> Reader:
    from phiconv_formats.huggingface.checkpoint import open_checkpoint

    return open_checkpoint


def _folder_writer() -> Writer:
    from phiconv_formats.huggingface import FolderWriter

    return FolderWriter()


def _gguf_reader() -> Reader:
    from phiconv_formats.gguf import open_checkpoint

    return open_checkpoint


def _gguf_writer() -> Writer:
    from phiconv_formats.gguf import GgufWriter

    return GgufWriter()


def _litert_reader() -> Reader:
    from phiconv_formats.litert import open_checkpoint

    return open_checkpoint


def _litert_writer() -> Writer:
    from phiconv_formats.litert import LiteRtWriter

    return LiteRtWriter()


def _mlx_writer() -> Writer:
    from phiconv_formats.mlx import MlxWriter

    return MlxWriter()


def _onnx_reader() -> Reader:
    from phiconv_formats.onnx import open_checkpoint

    return open_checkpoint


def _onnx_writer() -> Writer:
    from phiconv_formats.onnx import OnnxWriter

    return OnnxWriter()


def _openvino_reader() -> Reader:
    from phiconv_formats.openvino import open_checkpoint

    return open_checkpoint


def _openvino_writer() -> Writer:
    from phiconv_formats.openvino import OpenVinoWriter

    return OpenVinoWriter()


def _compressed_tensors_writer() -> Writer:
    from phiconv_formats.server.compressed_writer import CompressedTensorsWriter

    return CompressedTensorsWriter()


def _gptq_writer() -> Writer:
    from phiconv_formats.server.gptq_writer import WordsWriter

    return WordsWriter("gptq")


def _awq_writer() -> Writer:
    from phiconv_formats.server.gptq_writer import WordsWriter

    return WordsWriter("awq")


FORMATS = {
    f.name: f
    for f in (
        Format(
            "safetensors",
            "a Hugging Face folder, a .safetensors file with its siblings, or a sharded one by its index",
            (".safetensors", ".safetensors.index.json"),
            reader=_huggingface_reader,
            writer=_folder_writer,
            folder=True,
        ),
        Format(
            "pytorch",
            "a PyTorch checkpoint: pytorch_model.bin with its siblings, a .pt or .pth, or a sharded one",
            (".bin", ".pt", ".pth", ".bin.index.json"),
            reader=_huggingface_reader,
        ),
        Format(
            "gguf",
            "llama.cpp",
            (".gguf",),
            reader=_gguf_reader,
            writer=_gguf_writer,
            file_suffix=".gguf",
            sees=("phi4-siglip",),
        ),
        Format(
            "litert",
            "Google LiteRT (LiteRT-LM: Android, iOS, Raspberry Pi)",
            (".litertlm", ".tflite"),
            reader=_litert_reader,
            writer=_litert_writer,
            file_suffix=".litertlm",
            other_suffix=".tflite",
        ),
        Format(
            "mlx",
            "a folder for Apple MLX (mlx-lm, mlx-vlm, LM Studio)",
            (),
            reader=_huggingface_reader,
            writer=_mlx_writer,
            folder=True,
            sees=("phi3_v", "phi4-siglip"),
        ),
        Format(
            "onnx",
            "ONNX Runtime and ONNX Runtime GenAI",
            (".onnx",),
            reader=_onnx_reader,
            folder_files=("genai_config.json",),
            inner_files="onnx/*.onnx",
            writer=_onnx_writer,
            folder=True,
            file_suffix=".onnx",
            sees=("phi3_v", "phi4mm", "phi4_multimodal"),
        ),
        Format(
            "openvino",
            "Intel OpenVINO (OpenVINO GenAI)",
            (".xml",),
            reader=_openvino_reader,
            folder_files=("openvino_model.xml", "openvino_language_model.xml"),
            writer=_openvino_writer,
            folder=True,
            file_suffix=".xml",
            sees=("phi3_v", "phi4mm", "phi4_multimodal"),
        ),
        Format(
            "compressed-tensors",
            "a quantized Hugging Face folder for vLLM, SGLang and transformers, as llm-compressor writes it",
            (),
            reader=_huggingface_reader,
            writer=_compressed_tensors_writer,
            folder=True,
        ),
        Format(
            "gptq",
            "a quantized Hugging Face folder for vLLM and others, in GPTQ's layout",
            (),
            reader=_huggingface_reader,
            writer=_gptq_writer,
            folder=True,
        ),
        Format(
            "awq",
            "a quantized Hugging Face folder for vLLM and others, in AWQ's layout (gemm)",
            (),
            reader=_huggingface_reader,
            writer=_awq_writer,
            folder=True,
        ),
    )
}
"""Every format, by name."""


def find_reader(path: Path) -> Reader:
    """The reader for a path, by what it is; a folder is a Hugging Face one unless a file tells."""
    if not is_there(path):
        message, hint = what_is_missing(path)
        raise MissingFileError(message, path=path, hint=hint)
    found = _folder_format(path) if path.is_dir() else _file_format(path)
    reader = FORMATS[found].reader if found else None
    if reader is not None:
        return reader()
    suffixes = ", ".join(s for f in FORMATS.values() if f.reader for s in f.suffixes)
    hint = f"give a model folder, or one of {suffixes}"
    if path.suffix.lower() == ".json":
        hint = "give the folder that it is in"
    raise InputError("not a kind of file that phiconv reads", path=path, hint=hint)


def _file_format(path: Path) -> str:
    """The name of a file's format: by its content, else by its suffix, in any case; "" if neither tells."""
    name = path.name.lower()
    named = (f.name for f in FORMATS.values() if f.reader is not None and name.endswith(f.suffixes))
    return format_of_content(path) or next(named, "")


def _folder_format(folder: Path) -> str:
    """The name of the format that a folder is read as; where the original weights are, they are taken."""
    if any(folder.glob("*.safetensors")):
        return "safetensors"
    files = {file: f.name for f in FORMATS.values() if f.reader is not None for file in f.folder_files}
    named = next((name for file, name in files.items() if (folder / file).is_file()), "")
    if named or has_original_weights(folder):
        return named or "safetensors"
    inner = (f for f in FORMATS.values() if f.reader is not None and f.inner_files)
    return next((f.name for f in inner if any(folder.glob(f.inner_files))), "safetensors")


_ALIASES = {
    "autoawq": "awq",
    "ct": "compressed-tensors",
    "llm-compressor": "compressed-tensors",
    "llmcompressor": "compressed-tensors",
    "vllm": "compressed-tensors",
    "gptqmodel": "gptq",
    "ggml": "gguf",
    "llama.cpp": "gguf",
    "llama-cpp": "gguf",
    "llamacpp": "gguf",
    "ollama": "gguf",
    "mlx-lm": "mlx",
    "litert-lm": "litert",
    "litertlm": "litert",
    "tf-lite": "litert",
    "tflite": "litert",
    "genai": "onnx",
    "onnx-genai": "onnx",
    "onnxruntime": "onnx",
    "onnxruntime-genai": "onnx",
    "ort": "onnx",
    "ort-genai": "onnx",
    "openvino-genai": "openvino",
    "openvino-ir": "openvino",
    "ov": "openvino",
    "hf": "safetensors",
    "hugging-face": "safetensors",
    "huggingface": "safetensors",
    "safetensor": "safetensors",
    "transformers": "safetensors",
}
"""What else people call the formats that can be written."""


def _named_target(name: str, writable: Mapping[str, Format]) -> Format:
    """A format that can be written, by its name or an alias; case does not matter."""
    known = known_as(name, writable, _ALIASES)
    if known is not None:
        return writable[known]
    choice = f"one of {', '.join(writable)}"
    if (other := known_as(name, FORMATS, {})) is not None:
        raise UsageError(f"--to {name}: {other} is read, and not written", hint=choice)
    raise UsageError(f"--to {name}: unknown format", hint=did_you_mean(name, [*writable, *_ALIASES], choice))


def find_target(destination: Path, name: str | None) -> Format:
    """The format to write: by name, or by the destination's suffix, in any case."""
    writable = {f.name: f for f in FORMATS.values() if f.writer is not None}
    files = {suffix: f for f in writable.values() for suffix in f.file_suffixes}
    own_name = destination.name.lower()
    if name is not None:
        found = _named_target(name, writable)
        name = found.name
        if not found.file_suffix and own_name.endswith(found.suffixes):
            raise UsageError(
                f"--to {name} writes a folder", path=destination, hint="give the name of a folder"
            )
        other = next((f.name for suffix, f in files.items() if own_name.endswith(suffix)), name)
        if other != name:
            raise UsageError(
                f"--to {name}, and a name that says {other}",
                path=destination,
                hint="give another name, or leave out --to",
            )
        return found
    for suffix, entry in files.items():
        if own_name.endswith(suffix):
            return entry
    suffixes = ", ".join(files)
    raise UsageError(
        "cannot tell the format from this name", path=destination, hint=f"end it in {suffixes}, or give --to"
    )
