"""PyTorch checkpoints: what PyTorch itself wrote, and whole models in every form."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv_formats.pytorch import open_pytorch
from phiconv_formats.pytorch.storage import StridedRows

BY_TORCH = FIXTURES / "pytorch"
FORMS = ["zip", "legacy", "nested", "transposed", "shared", "big-endian", "sharded"]


def count(*shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


BASE, CUBE = count(6, 4), count(2, 3, 4)
VIEWS = {
    "whole": BASE,
    "rows": BASE[2:5],
    "columns": BASE[:, 1:3],
    "steps": BASE[::2, ::3],
    "transposed": BASE.T,
    "vector": BASE[:, 2],
    "element": BASE[3, 3],
    "cube": CUBE,
    "cube_transposed": CUBE.transpose(0, 2, 1),
    "cube_turned": CUBE.transpose(2, 0, 1),
    "cube_cut": CUBE[:, 1:],
    "one_row": BASE[1:2],
    "one_column": BASE[:, 1:2],
    "empty": BASE[:0],
    "unsqueezed": BASE[:, None, :, None],
}


def contents(path):
    return {name: phiconv.read(tensor) for name, tensor in phiconv.open_model(path).stored.items()}


@pytest.mark.parametrize("name", ["views.pt", "views_legacy.pt"])
def test_views_by_pytorch(name):
    found = contents(BY_TORCH / name)
    assert list(found) == list(VIEWS)
    for key, values in VIEWS.items():
        assert np.array_equal(found[key], values), key
        assert found[key].shape == values.shape


@pytest.mark.parametrize("name", ["views.pt", "views_legacy.pt"])
def test_any_rows_of_a_view(name):
    for key, tensor in phiconv.open_model(BY_TORCH / name).stored.items():
        matrix = VIEWS[key].reshape(tensor.rows, tensor.columns)
        for start in range(tensor.rows + 1):
            for stop in range(start, tensor.rows + 1):
                assert np.array_equal(
                    phiconv.read(tensor, start, stop).reshape(-1), matrix[start:stop].ravel()
                )


def test_types_by_pytorch():
    stored = phiconv.open_model(BY_TORCH / "types.pt").stored
    names = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
    for name, encoding in names.items():
        assert stored[name].encoding.name == encoding
        assert np.array_equal(phiconv.read(stored[name]), count(2, 3))
    for name, dtype in {
        "int64": "<i8",
        "int32": "<i4",
        "int16": "<i2",
        "uint16": "<u2",
        "uint8": "u1",
    }.items():
        assert np.array_equal(stored[name].read(0, 2).view(dtype), count(2, 3).astype(dtype))
        with pytest.raises(phiconv.UnsupportedModelError, match="cannot decode"):
            phiconv.read(stored[name])
    assert stored["float8_e4m3fn"].encoding.name == "f8_e4m3"


@pytest.mark.parametrize("name", ["state_dict.pth", "state_dict_4.pth"])
def test_state_dict_with_attributes(name):
    assert {k: v.tolist() for k, v in contents(BY_TORCH / name).items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "bias": [0, 1],
    }


def test_parameters_and_files_without_checksums():
    found = contents(BY_TORCH / "parameters.pt") | contents(BY_TORCH / "no_crc.pt")
    assert {k: v.tolist() for k, v in found.items()} == dict.fromkeys("ab", count(2, 3).tolist())


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("module.pt", phiconv.UnsafePickleError, "asks for torch.nn.modules.linear.Linear"),
        ("script.pt", phiconv.UnsupportedModelError, "TorchScript"),
        ("expanded.pt", phiconv.MalformedFileError, "holds elements twice"),
    ],
)
def test_what_pytorch_writes_and_phiconv_refuses(name, kind, says):
    with pytest.raises(kind, match=says):
        phiconv.open_model(BY_TORCH / name)


def test_a_transposed_matrix_is_read_a_few_rows_at_a_time(make_pytorch, tmp_path):
    values = np.arange(300 * 500, dtype=np.float32).reshape(300, 500)
    view = make_pytorch.Tensor(
        make_pytorch.Storage("0", "FloatStorage", values.size), 0, (500, 300), (1, 500)
    )
    make_pytorch.write_zip(tmp_path / "x.pt", make_pytorch.whole({"w": view}), {"0": values.tobytes()})
    (run,) = open_pytorch(tmp_path / "x.pt").tensors["w"].runs
    assert isinstance(run.source, StridedRows)
    asked = []
    read = run.source.region.file.read_into
    run.source.region.file.read_into = lambda at, view: (asked.append(len(view)), read(at, view))
    assert np.array_equal(run.source.read(7, 11), values.T[7:11])
    assert sum(asked) == 4 * 300  # elements


# ----------------------------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The files that the safetensors give."""
    folder = tmp_path_factory.mktemp("wanted")
    return {
        quant: phiconv.convert(FIXTURES / "tiny-phi4mini", folder / f"{quant}.gguf", quant=quant).files[0]
        for quant in ("Q4_K_M", "F16")
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_bytes_of_the_safetensors(form, wanted, make_pytorch, tmp_path):
    folder = make_pytorch.make_checkpoint(FIXTURES / "tiny-phi4mini", tmp_path / "tiny-phi4mini", form)
    model = phiconv.open_model(folder)
    assert model.format == "pytorch"
    for quant, file in wanted.items():
        made = phiconv.convert(model, tmp_path / f"{quant}.gguf", quant=quant).files[0]
        assert made.read_bytes() == file.read_bytes()


def test_a_file_or_a_shard_stands_for_the_folder(make_pytorch, tmp_path):
    whole = make_pytorch.make_checkpoint(FIXTURES / "tiny-phi4mini", tmp_path / "a", "zip")
    sharded = make_pytorch.make_checkpoint(FIXTURES / "tiny-phi4mini", tmp_path / "b", "sharded")
    names = set(phiconv.open_model(whole).stored)
    for path in (
        whole / "pytorch_model.bin",
        sharded / "pytorch_model-00002-of-00002.bin",
        sharded / "pytorch_model.bin.index.json",
    ):
        model = phiconv.open_model(path)
        assert model.architecture == "phi3"
        assert set(model.stored) == names


def test_safetensors_are_preferred(make_pytorch, tmp_path):
    folder = make_pytorch.make_checkpoint(FIXTURES / "tiny-phi4mini", tmp_path / "a", "zip")
    (folder / "pytorch_model.bin").write_bytes(b"never looked at")
    shutil.copy(FIXTURES / "tiny-phi4mini" / "model.safetensors", folder)
    assert phiconv.open_model(folder).format == "safetensors"


def test_what_training_leaves_is_not_taken_for_weights(make_pytorch, tmp_path):
    folder = make_pytorch.make_checkpoint(FIXTURES / "tiny-phi4mini", tmp_path / "a", "zip")
    (folder / "pytorch_model.bin").rename(folder / "weights.bin")
    (folder / "training_args.bin").write_bytes(b"x")
    assert phiconv.open_model(folder).format == "pytorch"
    (folder / "more.bin").write_bytes(b"x")
    with pytest.raises(phiconv.MissingFileError, match=r"2 \.bin files, and no index"):
        phiconv.open_model(folder)


def test_a_damaged_storage_is_found_before_the_output_appears(make_pytorch, tmp_path):
    folder = make_pytorch.make_checkpoint(FIXTURES / "tiny-phi4mini", tmp_path / "a", "zip")
    path = folder / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(phiconv.MalformedFileError, match=r"entry archive/data/\d+: the CRC is"):
        phiconv.convert(folder, tmp_path / "x.gguf", quant="f16")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_changed_file_is_noticed(make_pytorch, tmp_path):
    folder = make_pytorch.make_checkpoint(FIXTURES / "tiny-phi4mini", tmp_path / "a", "shared")
    model = phiconv.open_model(folder)
    with (folder / "pytorch_model.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(phiconv.MalformedFileError, match="changed"):
        phiconv.convert(model, tmp_path / "x.gguf", quant="f16")


def test_inspect_and_plain_tensors(make_pytorch, tmp_path):
    from phiconv.cli.report_inspection import inspection_lines

    shutil.copy(BY_TORCH / "types.pt", tmp_path)
    lines = inspection_lines(phiconv.examine(tmp_path / "types.pt"))
    assert "pytorch, plain tensors" in lines[0]
    assert any("bfloat16" in line and "bf16" in line for line in lines)
    plain = phiconv.Choices(plain=True)
    result = phiconv.convert(
        tmp_path / "types.pt", tmp_path / "out", to="safetensors", quant="f32", choices=plain
    )
    assert [p.name for p in result.files] == ["model.safetensors"]
    again = phiconv.open_model(result.files[0]).stored
    assert again["int64"].encoding.name == "i64"
    assert np.array_equal(phiconv.read(again["bfloat16"]), count(2, 3))


def test_index_and_shards_must_agree(make_pytorch, tmp_path):
    folder = make_pytorch.make_checkpoint(FIXTURES / "tiny-phi4mini", tmp_path / "a", "sharded")
    path = folder / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "../pytorch_model-00001-of-00002.bin"
    path.write_text(json.dumps(index))
    with pytest.raises(phiconv.MalformedFileError, match="is not the name of a file in the same folder"):
        phiconv.open_model(folder)
