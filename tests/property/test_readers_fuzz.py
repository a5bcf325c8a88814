"""Every reader, the whole way: a valid source is changed at random, and is converted or refused.

No exception but those of `phiconv.errors`, no hang, no memory, nothing half-written; and what was converted
can be opened. ``PHICONV_FUZZ_EXAMPLES=10000`` looks for longer than a test run should.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import time
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import phiconv
from memory import resident
from mutations import changes, json_changes, mutate, mutate_json
from phiconv.errors import PhiconvError
from phiconv.recipes import Choices
from quantized_folder import FOLDERS, complete

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXAMPLES = int(os.environ.get("PHICONV_FUZZ_EXAMPLES", "8"))
SECONDS = 2.0
MEMORY = 200 << 20

# What makes sense in more than one place of its format.
PIECES = [
    b'"dtype":"F16"', b'"shape":[1]', b'{"', b"[[[[", b"\xff\xff\xff\xff\x7f", b"GGUF", b"PK\3\4", b"PK\1\2",
    b"\x80\x02", b"(X\7\0\0\0storage", b"ctorch\nFloatStorage\n", b"NaN", b"1e999", b"\\ud800",
    b"\xef\xbb\xbf", b"\n\x02\x08\x01", b"MatMulNBits", b"</layer>", b"<!DOCTYPE x>", b'id="0"',
]  # fmt: skip


QUANTIZED = {
    "gptq": "gptq-4-order",
    "awq": "awq-g32",
    "bitsandbytes": "bnb-nf4-double",
    "modelopt": "modelopt-w4a16-awq",
    "torchao": "torchao-int4-asym",
    "fp8": "fp8-96",
    "mxfp4": "mxfp4",
}
"""Folders of fixtures/quantized_folders, one of each family."""


@dataclass(frozen=True)
class Case:
    """A valid source, and the file of it that is changed.

    Attributes:
        folder: Where it is.
        file: The file that is changed.
        given: What phiconv is given: the folder, or a file in it.
        parse: Takes the JSON out of the file's bytes; None where there is none in it.
        build: The bytes of a file with this JSON.
        imatrix: The changed file is the importance matrix of the conversion.
    """

    folder: Path
    file: str
    given: str = "."
    parse: Callable[[bytes], Any] | None = None
    build: Callable[[bytes, Any], bytes] = field(default=lambda _, value: json.dumps(value).encode())
    imatrix: bool = False


def header(data: bytes) -> Any:
    """The header of a safetensors file."""
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def with_header(data: bytes, value: Any) -> bytes:
    text, length = json.dumps(value).encode(), struct.unpack("<Q", data[:8])[0]
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def imatrices(folder: Path) -> None:
    """Both forms of an importance matrix, of every matrix of the model."""
    model = phiconv.open_model(folder)
    made = phiconv.plan(model, folder.parent / "x.gguf", quant="f16")
    names = {t.name: t.shape[-1] for t in made.tensors if len(t.shape) == 2 and t.name.startswith("blk.")}
    values = {name: np.linspace(1, 2, columns, dtype="<f4").tobytes() for name, columns in names.items()}
    records = [
        struct.pack("<i", len(n)) + n.encode() + struct.pack("<ii", 3, len(v) // 4) + v
        for n, v in values.items()
    ]
    tail = struct.pack("<ii", 7, 4) + b"wiki"
    (folder / "imatrix.dat").write_bytes(struct.pack("<i", len(values)) + b"".join(records) + tail)
    writer = gguf.GGUFWriter(folder / "imatrix.gguf", "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki"])
    writer.add_uint32("imatrix.chunk_count", 7)
    for name, data in values.items():
        writer.add_tensor(f"{name}.in_sum2", np.frombuffer(data, "<f4"))
        writer.add_tensor(f"{name}.counts", np.array([3], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(root: Path, make_base: Callable[..., Path]) -> dict[str, Case]:
    """Folders that other tools have quantized."""
    made = {
        title: complete(name, make_base(root / name, FOLDERS[name]["kind"]))
        for title, name in QUANTIZED.items()
    }
    return {
        **{t: Case(f, "model.safetensors", parse=header, build=with_header) for t, f in made.items()},
        "gptq config": Case(made["gptq"], "config.json", parse=json.loads),
        "fp8 config": Case(made["fp8"], "config.json", parse=json.loads),
    }


def compressed(source: Path, root: Path) -> dict[str, Case]:
    """Folders of compressed-tensors."""
    phiconv.convert(source, root / "compressed", to="compressed-tensors", quant="w4a16-asym-g32")
    phiconv.convert(source, root / "nvfp4", to="compressed-tensors", quant="nvfp4a16")
    weights = "model.safetensors"
    return {
        "compressed weights": Case(root / "compressed", weights, parse=header, build=with_header),
        "compressed config": Case(root / "compressed", "config.json", parse=json.loads),
        "nvfp4 weights": Case(root / "nvfp4", weights, parse=header, build=with_header),
    }


def litert_files(source: Path, root: Path) -> None:
    """A file for LiteRT-LM, and a graph alone with its tokenizer beside it."""
    for end in ("litertlm", "tflite"):
        (root / end).mkdir()
        phiconv.convert(source, root / end / f"x.{end}", quant="wi4b32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, root / "tflite")


@pytest.fixture(scope="module")
def cases(tmp_path_factory, make_miniature, make_pytorch, make_base):
    root = tmp_path_factory.mktemp("miniatures")
    byte_level = make_miniature.make_miniature(root / "bytes")
    imatrices(byte_level)
    pieces = make_miniature.make_miniature(root / "pieces", sentencepiece=True)
    shards = make_miniature.make_miniature(root / "shards", shards=True)
    for folder, quant in ((root / "q8_0.gguf", "q8_0"), (root / "q4_0.gguf", "q4_0")):
        folder.mkdir()
        phiconv.convert(pieces, folder / "x.gguf", quant=quant)
    (root / "split").mkdir()
    phiconv.convert(pieces, root / "split" / "x.gguf", quant="q8_0", split_max_size=9000)
    first, second, *_ = sorted(path.name for path in (root / "split").glob("*.gguf"))
    phiconv.convert(byte_level, root / "mlx", to="mlx", quant="4bit-g32")
    phiconv.convert(byte_level, root / "onnx", to="onnx", quant="int4-asym")
    phiconv.convert(root / "q8_0.gguf" / "x.gguf", root / "qdq", to="onnx", quant="int8-qdq")
    (root / "qdq" / "config.json").unlink()  # so that genai_config.json and the graph must say it
    phiconv.convert(byte_level, root / "openvino", to="openvino", quant="int4-asym-g32")
    litert_files(byte_level, root)
    torch = {form: make_pytorch.make_checkpoint(pieces, root / form, form) for form in ("zip", "legacy")}
    weights = "model.safetensors"
    return {
        "safetensors": Case(byte_level, weights, parse=header, build=with_header),
        "index": Case(shards, f"{weights}.index.json", parse=json.loads),
        "shard": Case(shards, "model-00002-of-00003.safetensors", parse=header, build=with_header),
        "config": Case(byte_level, "config.json", parse=json.loads),
        "tokenizer.json": Case(byte_level, "tokenizer.json", parse=json.loads),
        "tokenizer_config": Case(byte_level, "tokenizer_config.json", parse=json.loads),
        "added_tokens": Case(byte_level, "added_tokens.json", parse=json.loads),
        "generation_config": Case(byte_level, "generation_config.json", parse=json.loads),
        "tokenizer.model": Case(pieces, "tokenizer.model"),
        "gguf q8_0": Case(root / "q8_0.gguf", "x.gguf", "x.gguf"),
        "gguf q4_0": Case(root / "q4_0.gguf", "x.gguf", "x.gguf"),
        "gguf part": Case(root / "split", second, first),
        "pytorch zip": Case(torch["zip"], "pytorch_model.bin"),
        "pytorch legacy": Case(torch["legacy"], "pytorch_model.bin"),
        "mlx weights": Case(root / "mlx", weights, parse=header, build=with_header),
        "mlx config": Case(root / "mlx", "config.json", parse=json.loads),
        **compressed(byte_level, root),
        "onnx": Case(root / "onnx", "model.onnx"),
        "onnx qdq": Case(root / "qdq", "model.onnx"),
        "onnx config": Case(root / "qdq", "genai_config.json", parse=json.loads),
        "openvino": Case(root / "openvino", "openvino_model.xml"),
        **quantized(root, make_base),
        "litertlm": Case(root / "litertlm", "x.litertlm", "x.litertlm"),
        "tflite": Case(root / "tflite", "x.tflite", "x.tflite"),
        "imatrix.gguf": Case(byte_level, "imatrix.gguf", imatrix=True),
        "imatrix.dat": Case(byte_level, "imatrix.dat", imatrix=True),
    }  # fmt: skip


JSON = [
    "safetensors", "index", "shard", "config", "tokenizer.json", "tokenizer_config", "added_tokens",
    "generation_config", "mlx weights", "mlx config", "onnx config", "compressed weights",
    "compressed config", "nvfp4 weights", *QUANTIZED, "gptq config", "fp8 config",
]  # fmt: skip
SETTINGS = ["config", "tokenizer.json", "tokenizer_config", "added_tokens", "generation_config"]
"""Files of one folder."""

NAMES = [
    *JSON, "tokenizer.model", "gguf q8_0", "gguf q4_0", "gguf part", "pytorch zip", "pytorch legacy",
    "onnx", "onnx qdq", "openvino", "litertlm", "tflite", "imatrix.gguf", "imatrix.dat",
]  # fmt: skip


@pytest.fixture
def converts(tmp_path, cases):
    """Converts a case with other bytes in its file; "converted", or what refused it."""

    def run(case: Case, data: bytes) -> str:
        source, out = tmp_path / "source", tmp_path / "out"
        if not source.exists():
            shutil.copytree(case.folder, source)
            out.mkdir()
        (source / case.file).unlink()
        (source / case.file).write_bytes(data)
        path = source if case.given == "." else source / case.given
        choices = Choices(allow_requantize=True)
        matrix = source / case.file if case.imatrix else None
        refusal, start = None, time.process_time()
        try:
            phiconv.convert(
                path, out / "x.gguf", quant="q4_1", choices=choices, imatrix=matrix, jobs=1, receipt=False
            )
        except PhiconvError as error:
            refusal = error
        assert time.process_time() - start < SECONDS
        if refusal is not None:
            assert str(refusal).isprintable()
            assert list(out.iterdir()) == []
            return type(refusal).__name__
        (out / "x.gguf").rename(tmp_path / "x.gguf")
        phiconv.open_model(tmp_path / "x.gguf")
        return "converted"

    before = resident(reset=True)
    yield run
    assert resident() - before < MEMORY


LONG = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", NAMES)
def test_the_sources_are_good(name, cases, converts):
    case = cases[name]
    assert converts(case, (case.folder / case.file).read_bytes()) == "converted"


@pytest.mark.parametrize("name", NAMES)
@given(wanted=changes(content=PIECES))
@LONG
def test_changed_bytes(name, cases, converts, wanted):
    case = cases[name]
    # --hypothesis-show-statistics says how far the changes come.
    event(converts(case, mutate((case.folder / case.file).read_bytes(), wanted)))


@pytest.mark.parametrize("name", JSON)
@given(wanted=json_changes())
@LONG
def test_changed_json(name, cases, converts, wanted):
    case = cases[name]
    data = (case.folder / case.file).read_bytes()
    event(converts(case, case.build(data, mutate_json(case.parse(data), wanted))))


TARGETS = ["litert", "mlx", "onnx", "openvino", "safetensors", "compressed-tensors"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_settings_are_good(target, cases, tmp_path):
    assert phiconv.plan(cases["config"].folder, tmp_path / "out", to=target, quant="f16").size


@pytest.mark.parametrize("target", TARGETS)
@given(name=st.sampled_from(SETTINGS), wanted=json_changes())
@LONG
def test_changed_settings_for_other_targets(target, cases, tmp_path, name, wanted):
    """Every writer meets them: a plan is an output without its weights."""
    case, source = cases[name], tmp_path / "source"
    if not source.exists():
        shutil.copytree(case.folder, source)
    data = (case.folder / case.file).read_bytes()
    (source / case.file).write_bytes(case.build(data, mutate_json(case.parse(data), wanted)))
    start = time.process_time()
    try:
        with contextlib.suppress(PhiconvError):
            phiconv.plan(source, tmp_path / "out", to=target, quant="f16")
    finally:
        (source / case.file).write_bytes(data)
    assert time.process_time() - start < SECONDS


@given(wanted=changes(content=PIECES))
@LONG
def test_changed_pickles_with_a_right_checksum(cases, converts, make_pytorch, tmp_path, wanted):
    """The checksum of a zip archive would hide the pickle from most changes."""
    case = cases["pytorch zip"]
    with zipfile.ZipFile(case.folder / case.file) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        pickle = mutate(archive.read(names["data.pkl"]), wanted)
        storages = {n[5:]: archive.read(full) for n, full in names.items() if n.startswith("data/")}
    path = make_pytorch.write_zip(tmp_path / "changed", pickle, storages)
    event(converts(case, path.read_bytes()))
