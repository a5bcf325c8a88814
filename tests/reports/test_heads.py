"""Heads that config.json calls tied although they are stored: the weights decide."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

import phiconv
from phiconv.architectures.heads import same_weights
from phiconv.errors import ConfigError, MalformedFileError
from phiconv.ir.model import Role

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
KINDS = ["phi", "phi3", "phi4mini", "phimoe", "llama", "qwen2", "qwen3"]
TARGETS = ["gguf", "mlx", "onnx", "openvino", "safetensors"]
IDS = np.arange(3, 15)[None]
SAID = "config.json says tie_word_embeddings"


def change(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.fixture
def folder_of(model_folder, tmp_path):
    """A model with a given head, under a given flag: a function of its embedding, or the head itself."""

    def make(kind, head, *, tied=True, name="model"):
        folder = tmp_path / name
        shutil.copytree(model_folder(kind), folder)
        (file,) = folder.glob("*.safetensors")
        tensors = safetensors.load_file(file)
        tensors.pop(HEAD, None)
        if head is not None:
            tensors[HEAD] = np.ascontiguousarray(head(tensors[EMBEDDING]) if callable(head) else head)
        safetensors.save_file(tensors, file, {"format": "pt"})
        change(folder, tie_word_embeddings=tied)
        return folder

    return make


def turned(embedding):
    return embedding[::-1]


def same(embedding):
    return embedding.copy()


def destination(tmp_path, target):
    return tmp_path / ("out.gguf" if target == "gguf" else f"out-{target}")


def tie_flag(out):
    return json.loads((out / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_its_own_is_kept(folder_of, kind):
    said, true = folder_of(kind, turned), folder_of(kind, turned, tied=False, name="true")
    model, expected = phiconv.open_model(said), phiconv.open_model(true)
    assert not model.hyperparameters.tie_word_embeddings
    assert model.tensors.keys() == expected.tensors.keys()
    assert HEAD in model.hub
    logits = phiconv.logits(model, IDS)
    assert np.array_equal(logits, phiconv.logits(expected, IDS))
    tied = phiconv.logits(folder_of(kind, None, name="tied"), IDS)
    assert np.linalg.norm(logits - tied) > np.linalg.norm(tied) / 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_target_has_it(folder_of, tmp_path, kind, target):
    source = folder_of(kind, turned)
    result = phiconv.convert(source, destination(tmp_path, target), to=target, quant="f32")
    assert sum(SAID in note for note in result.plan.package.notes) == 1
    written = phiconv.open_model(destination(tmp_path, target))
    assert not written.hyperparameters.tie_word_embeddings
    assert np.array_equal(phiconv.logits(written, IDS), phiconv.logits(source, IDS))
    if target != "gguf":
        assert tie_flag(destination(tmp_path, target)) is False
    difference = phiconv.compare(source, written)
    assert difference.total.max_error == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_once_more_stays_one_matrix(folder_of, tmp_path, kind, target):
    twice, once = folder_of(kind, same), folder_of(kind, None, name="once")
    model = phiconv.open_model(twice)
    assert model.hyperparameters.tie_word_embeddings
    assert Role("output") not in model.tensors
    out = [destination(tmp_path / name, target) for name in ("a", "b")]
    for source, path in zip((twice, once), out, strict=True):
        path.parent.mkdir()
        shutil.move(source, tmp_path / "model-again")  # names of the folder are in some files
        result = phiconv.convert(tmp_path / "model-again", path, to=target, quant="f32", receipt=False)
        assert not any(SAID in note for note in result.plan.package.notes)
        shutil.move(tmp_path / "model-again", source)
    a, b = ([p] if p.is_file() else sorted(p.iterdir()) for p in out)
    assert [p.name for p in a] == [p.name for p in b]
    differing = {x.name for x, y in zip(a, b, strict=True) if x.read_bytes() != y.read_bytes()}
    assert differing <= {"README.md"}  # which says how many numbers the source stores


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx", "openvino"])
@pytest.mark.parametrize("quant", ["smallest"])
def test_quantized_it_is_a_matrix_of_its_own(folder_of, tmp_path, target, quant):
    quants = {"gguf": "Q4_0", "mlx": "4bit-g32", "onnx": "int4", "openvino": "int4-asym-g32"}
    said, true = folder_of("phi3-gqa", turned), folder_of("phi3-gqa", turned, tied=False, name="true")
    out = []
    for name, source in (("a", said), ("b", true)):
        (tmp_path / name).mkdir()
        out.append(destination(tmp_path / name, target))
        phiconv.convert(source, out[-1], to=target, quant=quants[target])
    first, second = map(phiconv.open_model, out)
    assert first.stored.keys() == second.stored.keys()
    assert phiconv.compare(first, second).total.max_error == 0


@pytest.mark.parametrize(
    "head",
    [lambda e: e[:-8], lambda e: np.concatenate([e, e[:8]]), lambda e: e[:, :-8], lambda e: e.T],
    ids=["fewer", "more", "narrower", "columns"],
)
@pytest.mark.parametrize("kind", ["phi3", "llama"])
def test_a_head_of_another_shape_is_refused(folder_of, kind, head):
    with pytest.raises(
        ConfigError, match=r"tensor lm_head.weight: has shape \[.*, but the configuration asks"
    ):
        phiconv.open_model(folder_of(kind, head))


@pytest.mark.parametrize("kind", ["phi3", "phi4mini", "qwen2"])
def test_a_tied_matrix_may_be_stored_as_the_head_alone(folder_of, kind, tmp_path):
    folder = folder_of(kind, same)
    expected = phiconv.logits(folder, IDS)
    (file,) = folder.glob("*.safetensors")
    tensors = safetensors.load_file(file)
    del tensors[EMBEDDING]
    safetensors.save_file(tensors, file, {"format": "pt"})
    assert np.array_equal(phiconv.logits(folder, IDS), expected)
    out = phiconv.convert(folder, tmp_path / "o.gguf", quant="f32").files[0]
    assert {"token_embd.weight", "output.weight"} & phiconv.open_model(out).stored.keys() == {
        "token_embd.weight"
    }
    change(folder, tie_word_embeddings=False)
    with pytest.raises(MalformedFileError, match="embed_tokens"):
        phiconv.open_model(folder)


def test_a_single_bit_counts(folder_of):
    def one_bit(embedding):
        result = embedding.copy()
        result[-1, -1:].view(np.uint16)[0] ^= 1
        return result

    assert not phiconv.open_model(folder_of("phi3", one_bit)).hyperparameters.tie_word_embeddings


def test_the_same_values_of_another_type_are_the_embedding(folder_of):
    wide = folder_of("phi3", lambda e: e.astype(np.float32))
    assert phiconv.open_model(wide).hyperparameters.tie_word_embeddings
    near = folder_of("phi3", lambda e: e.astype(np.float32) * np.float32(1 + 1e-6), name="near")
    assert not phiconv.open_model(near).hyperparameters.tie_word_embeddings


def test_a_head_that_is_no_weight_is_refused(folder_of):
    with pytest.raises(MalformedFileError, match=r"lm_head.weight: is stored as i8"):
        phiconv.open_model(folder_of("phi3", lambda e: np.zeros(e.shape, np.int8)))


def test_untied_without_a_head_says_what_may_be_wrong(folder_of):
    with pytest.raises(MalformedFileError, match="if its head is the embedding, tie_word_embeddings"):
        phiconv.open_model(folder_of("llama", None, tied=False))


@pytest.mark.parametrize("form", ["zip", "legacy", "shared", "big-endian"])
def test_pytorch_checkpoints_are_compared_too(folder_of, make_pytorch, tmp_path, form):
    for name, head in (("same", same), ("own", turned)):
        make_pytorch.make_checkpoint(folder_of("phi3", head, name=name), tmp_path / f"bin-{name}", form)
    own, same_ = (phiconv.open_model(tmp_path / f"bin-{name}") for name in ("own", "same"))
    assert (own.hyperparameters.tie_word_embeddings, same_.hyperparameters.tie_word_embeddings) == (
        False,
        True,
    )


def test_a_shared_storage_is_not_read(folder_of):
    model = phiconv.open_model(folder_of("phi3", turned))
    tensor = model.tensors[Role("output")]

    class Unreadable:
        encoding, label = tensor.encoding, ""

    run = type(tensor.runs[0])(Unreadable(), 0, tensor.rows)
    shared = type(tensor)(tensor.shape, (run,))
    assert same_weights(shared, type(tensor)(tensor.shape, (run,)))


@pytest.mark.parametrize("target", ["mlx", "onnx", "openvino", "safetensors"])
def test_written_folders_are_sources_like_any_other(folder_of, tmp_path, target):
    """A folder of two matrices whose flag somebody has set to true."""
    source = folder_of("phi3", turned)
    out = destination(tmp_path, target)
    phiconv.convert(source, out, to=target, quant="f32")
    change(out, tie_word_embeddings=True)
    model = phiconv.open_model(out)
    assert not model.hyperparameters.tie_word_embeddings
    assert np.array_equal(phiconv.logits(model, IDS), phiconv.logits(source, IDS))


def test_a_graph_that_is_tied_is_so_whatever_the_file_beside_it_says(folder_of, tmp_path):
    source = folder_of("phi4mini", None)
    phiconv.convert(source, tmp_path / "onnx", to="onnx", quant="f32")
    change(tmp_path / "onnx", tie_word_embeddings=False)
    model = phiconv.open_model(tmp_path / "onnx")
    assert model.hyperparameters.tie_word_embeddings
    assert np.array_equal(phiconv.logits(model, IDS), phiconv.logits(source, IDS))


def test_compare_sees_that_a_head_was_dropped(folder_of):
    result = phiconv.compare(folder_of("phi3", turned), folder_of("phi3", None, name="dropped"))
    assert result.tensors[0].name == "output.weight"
    assert result.tensors[0].difference.relative_rmse > 1
    assert all(tensor.difference.max_error == 0 for tensor in result.tensors[1:])


def test_little_memory_is_used(folder_of):
    large = np.zeros((2112, 4096), ml_dtypes.bfloat16)
    folder = folder_of("phi3", same)
    change(folder, hidden_size=4096)  # other shapes are wrong then, and found later
    tensors = {"a": large, "b": large.copy()}
    tensors["b"][-1, -1] = 1
    safetensors.save_file(tensors, folder / "plain.safetensors")
    (folder / "config.json").unlink()
    stored = phiconv.open_model(folder / "plain.safetensors").stored
    tracemalloc.start()
    try:
        assert not same_weights(stored["a"], stored["b"])
        assert tracemalloc.get_traced_memory()[1] < large.nbytes
    finally:
        tracemalloc.stop()
