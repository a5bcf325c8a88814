"""What older GGUF files leave out: supplied with a note, as their runtime did."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

import phiconv
from phiconv.errors import InputError
from phiconv_formats.gguf.values import GgufValue
from tokenizer_families import VOCAB_SIZE, write_tokenizer

WINDOW = "phi3.attention.sliding_window"
PRE = "tokenizer.ggml.pre"
TARGETS = ("safetensors", "mlx", "onnx", "openvino")


def rewrite(source, destination, *, without=(), values=None):
    """The same file, less some keys, and with other values of some."""
    reader = GGUFReader(source)
    writer = GGUFWriter(destination, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in without:
            continue
        item = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        value = (values or {}).get(name, field.contents())
        writer.add_key_value(name, value, field.types[0], sub_type=item)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return destination


@pytest.fixture(scope="module")
def old_phi3(tmp_path_factory, make_models):
    """A GGUF of a phi3 of any number of layers and positions, with one window or without the key."""
    folder = tmp_path_factory.mktemp("old")

    def make(layers, positions, window=None):
        source = folder / f"{layers}-{positions}-{window}"
        if not source.exists():
            make_models.make_model(
                source,
                "phi3",
                num_hidden_layers=layers,
                max_position_embeddings=positions,
                original_max_position_embeddings=positions,
                sliding_window=window,
            )
        path = phiconv.convert(source, folder / f"{source.name}.gguf", quant="F32", force=True).files[0]
        return (
            path
            if window is not None
            else rewrite(path, folder / f"{source.name}-old.gguf", without=[WINDOW])
        )

    return make


@pytest.mark.parametrize(
    ("layers", "positions", "window"),
    [
        (32, 4096, 2047),  # Phi-3-mini-4k
        (40, 4096, 2047),  # Phi-3-medium-4k
        (32, 131072, None),  # their models of long contexts have windows that limit nothing
        (40, 131072, None),
        (40, 16384, None),  # Phi-4
        (2, 4096, None),
        (24, 4096, None),
        (32, 2048, None),
    ],
)
def test_the_window_of_a_phi3(old_phi3, layers, positions, window):
    model = phiconv.open_model(old_phi3(layers, positions))
    assert model.hyperparameters.sliding_window == window
    assert any(WINDOW in note and "2047" in note for note in model.card.supplied) == (window is not None)


@pytest.mark.parametrize("said", [0, 100, 262144])
def test_a_window_that_is_said_counts(old_phi3, tmp_path, said):
    path = rewrite(old_phi3(32, 4096, 512), tmp_path / "x.gguf", values={WINDOW: said})
    model = phiconv.open_model(path)
    assert model.hyperparameters.sliding_window == (said or None)
    assert model.card.supplied == ()


@pytest.mark.parametrize("target", TARGETS)
def test_the_window_is_written(old_phi3, tmp_path, target):
    result = phiconv.convert(old_phi3(32, 4096), tmp_path / "out", to=target)
    assert [note for note in result.plan.package.notes if WINDOW in note]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sliding_window"] == 2047


def test_the_window_counts(old_phi3, tmp_path):
    """Positions beyond the window differ from those of a model that sees all; the others do not."""
    ids = np.random.default_rng(1).integers(3, 200, (1, 2060))
    source = old_phi3(32, 4096)
    limitless = rewrite(old_phi3(32, 4096, 512), tmp_path / "limitless.gguf", values={WINDOW: 0})
    ours, theirs = (phiconv.logits(path, ids)[0] for path in (source, limitless))
    np.testing.assert_allclose(ours[:2047], theirs[:2047], atol=1e-4)
    assert np.abs(ours[2050:] - theirs[2050:]).max() > 1e-3


def test_a_copy_says_no_more(old_phi3, tmp_path):
    source = old_phi3(32, 4096)
    result = phiconv.convert(source, tmp_path / "copy.gguf")
    assert result.plan.package.notes == ()
    assert WINDOW not in phiconv.open_model(tmp_path / "copy.gguf").metadata


@pytest.fixture(scope="module")
def phi2(tmp_path_factory, make_models):
    """A phi-2 as folder, as GGUF, and as a GGUF that says no split."""
    folder = tmp_path_factory.mktemp("phi2")
    source = make_models.make_model(folder / "phi2", "phi2", vocab_size=VOCAB_SIZE)
    write_tokenizer("phi2", source)
    path = phiconv.convert(source, folder / "new.gguf", quant="F32").files[0]
    return source, path, rewrite(path, folder / "old.gguf", without=[PRE])


@pytest.mark.parametrize("target", TARGETS)
def test_the_split_of_a_phi2(phi2, tmp_path, target):
    _, new, old = phi2
    result = phiconv.convert(old, tmp_path / "old", to=target, receipt=False)
    assert [note for note in result.plan.package.notes if PRE in note and "phi-2" in note]
    phiconv.convert(new, tmp_path / "new", to=target, receipt=False)
    files = [path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert len(files) > 3
    for file in files:
        assert (tmp_path / "old" / file).read_bytes() == (tmp_path / "new" / file).read_bytes(), file


def test_a_split_that_is_said_counts(phi2, tmp_path):
    path = rewrite(phi2[1], tmp_path / "x.gguf", values={PRE: "default"})
    assert phiconv.open_model(path).metadata[PRE] == GgufValue(GGUFValueType.STRING, "default")
    with pytest.raises(InputError, match="splits text is not known: default"):
        phiconv.plan(path, tmp_path / "out", to="safetensors")


def test_other_families_have_no_split_of_their_own(make_models, tmp_path):
    source = make_models.make_model(tmp_path / "phi4mini", "phi4mini")
    new = phiconv.convert(source, tmp_path / "new.gguf", quant="F32").files[0]
    old = rewrite(new, tmp_path / "old.gguf", without=[PRE])
    assert phiconv.open_model(old).card.supplied == ()
    with pytest.raises(InputError, match="splits text is not known"):
        phiconv.plan(old, tmp_path / "out", to="safetensors")
