"""What was written as safetensors, seen by the library: the same as was laid out, or refused."""

from __future__ import annotations

import json
import math

import pytest
import safetensors

import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.conversion.outputs import PartialFile
from phiconv.errors import OutputError
from phiconv_formats.shared.safetensors import DTYPE_OF_ENCODING, lay_out
from phiconv_formats.shared.safetensors_check import check_written

TENSORS = [("w", "BF16", (2, 4)), ("b", "F32", (4,)), ("scalar", "I64", ()), ("none", "U8", (0, 3))]
METADATA = {"format": "test"}
REPORT = "this is a bug in phiconv; please report it"


def write(path, tensors=TENSORS, metadata=METADATA, size=None):
    layout = lay_out(tensors, metadata)
    data = bytes((layout.size if size is None else size) - len(layout.head))
    path.write_bytes(layout.head + data)


def check(path, tensors=TENSORS):
    check_written(path, name="m.safetensors", tensors=tensors, metadata=METADATA)


def test_what_was_laid_out_passes(tmp_path):
    write(tmp_path / "x")
    check(tmp_path / "x")


def test_no_tensor_passes(tmp_path):
    write(tmp_path / "x", [])
    check(tmp_path / "x", [])


@pytest.mark.parametrize("dtype", sorted(DTYPE_OF_ENCODING.values()))
def test_the_library_knows_every_type(dtype, tmp_path):
    tensors = [("w", dtype, (2, 4))]
    write(tmp_path / "x", tensors)
    check(tmp_path / "x", tensors)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([("w", "F16", (2, 4)), *TENSORS[1:]], "tensor w: F16 of shape [2, 4] is in the file, where BF16 of"),
        ([("w", "BF16", (4, 2)), *TENSORS[1:]], "tensor w: BF16 of shape [4, 2] is in the file, where BF16"),
        (TENSORS[1:], "tensor w: nothing is in the file, where BF16 of shape [2, 4] was laid out"),
        ([*TENSORS, ("x\n", "U8", (1,))], r"tensor x\n: U8 of shape [1] is in the file, where nothing was"),
    ],
)
def test_another_tensor_is_named(found, says, tmp_path):
    write(tmp_path / "x", found)
    with pytest.raises(OutputError) as caught:
        check(tmp_path / "x")
    assert str(caught.value).startswith(f"m.safetensors: {says}")
    assert str(caught.value).endswith(REPORT)


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {}])
def test_other_metadata(metadata, tmp_path):
    write(tmp_path / "x", metadata=metadata)
    with pytest.raises(OutputError, match=rf"m\.safetensors: key __metadata__: \{{.*{REPORT}"):
        check(tmp_path / "x")


@pytest.mark.parametrize("more", [-1, 1, -40])
def test_a_file_of_another_size(more, tmp_path):
    write(tmp_path / "x", size=lay_out(TENSORS, METADATA).size + more)
    says = rf"m\.safetensors: safetensors {safetensors.__version__} cannot read what was written: .*{REPORT}"
    with pytest.raises(OutputError, match=says):
        check(tmp_path / "x")


@pytest.mark.parametrize("error", [OSError("No such device"), MemoryError("Cannot allocate memory")])
def test_what_cannot_be_mapped_is_no_bug(error, tmp_path, monkeypatch):
    def safe_open(*_, **__):
        raise error

    monkeypatch.setattr(safetensors, "safe_open", safe_open)
    with pytest.raises(OutputError, match=f"to check it: {error}; give a smaller --split-max-size"):
        check(tmp_path / "x")


# ----------------------------------------------------------------------------------------------- conversions


def damage(path):
    """Gives the first matrix of a file another shape, of the same size and in as many bytes of text."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    name = next(n for n, info in header.items() if len(info.get("shape", ())) > 1)
    header[name]["shape"] = [math.prod(header[name]["shape"])]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(start - 8)
    path.write_bytes(data[:8] + text + data[start:])


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("split", [None, 400_000])
@pytest.mark.parametrize("to", ["mlx", "safetensors"])
def test_a_damaged_file_never_appears(to, split, older, tmp_path, monkeypatch):
    folder, sync = tmp_path / "m", PartialFile.sync
    if older:
        phiconv.convert(FIXTURES / "tiny-phi3", folder, to=to)
    before = {p.name: p.read_bytes() for p in folder.glob("*")}
    damaged = []

    def damage_and_sync(partial):
        if partial.final.suffix == ".safetensors":
            damage(partial.path)
            damaged.append(partial.final.name)
        sync(partial)

    monkeypatch.setattr(PartialFile, "sync", damage_and_sync)
    with pytest.raises(
        OutputError, match=rf"^model.*\.safetensors: tensor .* was laid out; {REPORT}"
    ) as caught:
        phiconv.convert(FIXTURES / "tiny-phi4mini", folder, to=to, split_max_size=split, force=older)
    assert damaged == [caught.value.path]
    assert {p.name: p.read_bytes() for p in folder.glob("*")} == before
    assert [p.name for p in tmp_path.iterdir()] == (["m"] if older else [])


def test_what_is_only_copied_passes_in_every_type(write_safetensors, tmp_path):
    header, at = {}, 0
    for dtype in sorted(d for e, d in DTYPE_OF_ENCODING.items() if isinstance(e, ir.RawEncoding)):
        size = lay_out([("w", dtype, (2, 4))], {}).size - lay_out([("w", dtype, (0, 4))], {}).size
        header[dtype] = {"dtype": dtype, "shape": [2, 4], "data_offsets": [at, at + size]}
        at += size
    source = write_safetensors(header, bytes(at), "x.safetensors")
    (file,) = phiconv.convert(
        source, tmp_path / "m", to="safetensors", choices=phiconv.Choices(plain=True)
    ).files
    with safetensors.safe_open(file, framework="numpy") as found:
        assert {(n, found.get_slice(n).get_dtype()) for n in list(found.keys())} == {(n, n) for n in header}
