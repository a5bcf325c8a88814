"""Comparing models: the numbers are those of the formulas, whatever the formats."""

from __future__ import annotations

import json
import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import phiconv
from paths import FIXTURES
from phiconv.cli import main
from phiconv.errors import InputError, UnsupportedModelError
from phiconv.ir.model import Role
from phiconv.quality.comparison import Difference


@pytest.fixture
def write(tmp_path):
    """Writes a file of plain tensors."""

    def save(name, **tensors):
        path = tmp_path / f"{name}.safetensors"
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
        return path

    return save


def numbers(found):
    return {t.name: t.difference for t in found.tensors}


def plain(a, b):
    """The formulas, in one piece."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    error = b - a
    return {
        "relative_rmse": np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(a**2)),
        "max_error": np.abs(error).max(),
        "cosine": a @ b / (np.linalg.norm(a) * np.linalg.norm(b)),
        "sqnr": 10 * np.log10(np.sum(a**2) / np.sum(error**2)),
    }


def agree(difference, expected):
    return all(
        getattr(difference, name) == pytest.approx(value, rel=1e-9) for name, value in expected.items()
    )


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("kind", ["tiny-phi3", "tiny-phi4mini", "phimoe", "phi2"])
def test_a_model_does_not_differ_from_itself(kind, model_folder):
    found = phiconv.compare(model_folder(kind), phiconv.open_model(model_folder(kind)))
    assert found.matched_by == "role"
    assert found.total.weights == sum(t.difference.weights for t in found.tensors) > 0
    assert found.bits_a == found.bits_b > 0
    for each in (found.total, *numbers(found).values()):
        assert (each.relative_rmse, each.max_error, each.cosine, each.sqnr) == (0.0, 0.0, 1.0, math.inf)
        assert not each.nonfinite


def test_the_numbers_are_those_of_the_formulas(write):
    a = {"x": normal((300, 5000), 1), "y": normal(7, 2), "z": normal((2, 3, 4), 3)}
    noise = {name: 0.01 * (i + 1) * normal(value.shape, i + 5) for i, (name, value) in enumerate(a.items())}
    b = {name: (value + noise[name]).astype(np.float16) for name, value in a.items()}
    found = phiconv.compare(write("a", **a), write("b", **b))
    assert all(agree(numbers(found)[name], plain(a[name], b[name])) for name in a)
    everything = [np.concatenate([side[name].ravel() for name in a]) for side in (a, b)]
    assert agree(found.total, plain(*everything))
    errors = [t.difference.relative_rmse for t in found.tensors]
    assert errors == sorted(errors, reverse=True)  # the worst first
    assert found.tensors[-1].name == "x"
    assert (found.matched_by, found.bits_a, found.bits_b) == ("name", 32.0, 16.0)
    assert {(t.type_a, t.type_b) for t in found.tensors} == {("f32", "f16")}
    assert {t.name: t.shape for t in found.tensors} == {name: value.shape for name, value in a.items()}


def test_numbers_do_not_depend_on_threads(write):
    a, b = (write(name, x=normal((3000, 1000), i), y=normal(10, i)) for i, name in enumerate("ab"))
    with ThreadPoolExecutor(3) as pool:
        found = [
            phiconv.compare(a, b, jobs=1),
            phiconv.compare(a, b, jobs=7),
            phiconv.compare(a, b, executor=pool),
        ]
        assert pool.submit(int).result() == 0  # a foreign pool lives on
    assert found[0] == found[1] == found[2]


def test_progress_ends_at_the_whole(write):
    path = write("a", x=normal((3000, 1000), 1), y=normal(10, 2))
    calls = []
    phiconv.compare(path, path, progress=lambda *call: calls.append(call))
    assert calls[-1] == (3_000_010, 3_000_010, "y")
    assert [done for done, _, _ in calls] == sorted({done for done, _, _ in calls})


def test_zeros():
    ones, nothing = Difference(4, 4.0, 0.0, 0.0, 4.0, 1.0), Difference()
    assert (ones.relative_rmse, ones.sqnr) == (1.0, 0.0)
    assert math.isnan(ones.cosine)
    from_zero = Difference(4, 0.0, 4.0, 0.0, 4.0, 1.0)
    assert (from_zero.relative_rmse, from_zero.sqnr) == (math.inf, -math.inf)
    assert (nothing.relative_rmse, nothing.cosine, nothing.sqnr) == (0.0, 1.0, math.inf)


def test_what_is_not_finite_is_counted_and_comes_first(write):
    a, b = normal((4, 8), 1), normal((4, 8), 2)
    other = a.copy()
    a[0, :3] = np.nan, np.inf, -np.inf
    other[0, :3] = np.nan, np.inf, 1.0
    other[2, 2] = np.inf
    found = phiconv.compare(write("a", bad=a, good=np.abs(b)), write("b", bad=other, good=-np.abs(b)))
    assert [t.name for t in found.tensors] == ["bad", "good"]
    bad = numbers(found)["bad"]
    assert (bad.nonfinite_a, bad.nonfinite_b, bad.weights) == (3, 3, 32)
    assert (bad.relative_rmse, bad.max_error) == (0.0, 0.0)  # of the weights that are numbers
    assert found.total.nonfinite
    assert numbers(found)["good"].cosine == pytest.approx(-1)


# -------------------------------------------------------------------------------------------------- formats


def by_role(model):
    """The roles of a GGUF of Phi-3, for as long as its reader does not know them."""
    if model.tensors:
        return model
    plain_names = {"token_embd": "token_embedding", "output": "output", "output_norm": "output_norm"}
    inner = {"attn_norm": 1, "attn_output": 1, "ffn_norm": 1, "ffn_down": 1, "ffn_up": 2, "attn_qkv": 4}
    tensors = {}
    for name, tensor in model.stored.items():
        parts = name.split(".")
        if parts[0] in plain_names:
            tensors[Role(plain_names[parts[0]])] = tensor
            continue
        if parts[0] != "blk" or parts[2] not in inner:
            continue
        names = {"attn_qkv": ["attn_q", "attn_q", "attn_k", "attn_v"], "ffn_up": ["ffn_gate", "ffn_up"]}
        step = tensor.rows // inner[parts[2]]
        roles = names.get(parts[2], [parts[2]])
        for role in dict.fromkeys(roles):
            first, count = roles.index(role) * step, roles.count(role) * step
            tensors[Role(role, int(parts[1]))] = tensor.slice_rows(first, first + count)
    return replace(model, tensors=tensors)


@pytest.mark.parametrize(
    ("quant", "least", "most"), [("f32", math.inf, math.inf), ("q8", 40, 50), ("q4", 20, 28)]
)
def test_a_gguf_against_its_original(quant, least, most, tmp_path):
    target = tmp_path / "x.gguf"
    phiconv.convert(FIXTURES / "tiny-phi3", target, quant=quant)
    original, quantized = phiconv.open_model(FIXTURES / "tiny-phi3"), by_role(phiconv.open_model(target))
    found = phiconv.compare(original, quantized)
    assert found.matched_by == "role"
    assert {t.name for t in found.tensors} == {str(role) for role in original.tensors}
    assert least <= found.total.sqnr <= most
    role = Role("attn_k", 3)
    if quant != "f32":
        expected = plain(phiconv.read(original.tensors[role]), phiconv.read(quantized.tensors[role]))
        assert agree(numbers(found)[str(role)], expected)
        assert found.bits_b < found.bits_a == 16
        assert all(t.difference.relative_rmse == 0 for t in found.tensors if "norm" in t.name)


def test_a_tied_output_is_compared_with_the_embedding():
    tied = phiconv.open_model(FIXTURES / "tiny-phi4mini")
    assert Role("output") not in tied.tensors
    apart = replace(tied, tensors={**tied.tensors, Role("output"): tied.tensors[Role("token_embedding")]})
    for pair in ((tied, apart), (apart, tied)):
        found = phiconv.compare(*pair)
        assert numbers(found)["output.weight"].max_error == 0
    changed = replace(tied, hyperparameters=replace(tied.hyperparameters, tie_word_embeddings=False))
    with pytest.raises(InputError, match=r"output\.weight is only in the second"):
        phiconv.compare(changed, apart)


# --------------------------------------------------------------------------------------------------- errors


def test_models_that_do_not_fit(write):
    a = write("a", same=normal(3, 1), shape=normal((2, 4), 1), **{f"more{i}": normal(2, i) for i in range(9)})
    b = write("b", same=normal(3, 1), shape=normal((4, 2), 1), extra=normal(2, 1))
    with pytest.raises(InputError) as caught:
        phiconv.compare(a, b)
    message = str(caught.value)
    assert message.startswith(f"{b}: not the same weights as {a}: more0 is only in the first; ")
    assert "more4 is only in the first; and 6 more; " in message
    with pytest.raises(InputError, match="x is 2 x 4 in the first and 8 in the second"):
        phiconv.compare(write("c", x=normal((2, 4), 1)), write("d", x=normal(8, 1)))
    with pytest.raises(InputError, match="file of plain tensors"):
        phiconv.compare(FIXTURES / "tiny-phi3", a)
    with pytest.raises(InputError, match=r"layers\.4\.attn_norm\.weight is only in the first"):
        phiconv.compare(FIXTURES / "tiny-phi3", FIXTURES / "tiny-phi4mini")


def test_nothing_to_compare_and_no_weights(write):
    empty = write("empty")
    with pytest.raises(InputError, match="there is no tensor"):
        phiconv.compare(empty, empty)
    integers = write("integers", x=np.arange(4))
    with pytest.raises(UnsupportedModelError, match="cannot decode"):
        phiconv.compare(integers, integers)


def test_a_file_that_changes_is_noticed(write):
    a, b = write("a", x=normal((600, 1000), 1)), write("b", x=normal((600, 1000), 2))

    def change(*_):
        write("b", x=normal((600, 1001), 3))

    with pytest.raises(InputError, match="changed while it was read"):
        phiconv.compare(a, b, progress=change, jobs=1)


def test_memory_does_not_grow_with_the_model(write):
    paths = [write(name, x=normal((2048, 4096), i).astype(np.float16)) for i, name in enumerate("ab")]
    small = write("small", x=normal(3, 1))
    phiconv.compare(small, small, jobs=1)  # what is imported counts no more
    tracemalloc.start()
    try:
        phiconv.compare(*paths, jobs=1)
        assert tracemalloc.get_traced_memory()[1] < 14_000_000  # the two matrices have 17 MB each
    finally:
        tracemalloc.stop()


# --------------------------------------------------------------------------------------------- command line


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def test_json(write):
    a = write("a", x=normal((8, 8), 1), y=np.ones(4, np.float32))
    b = write("b", x=normal((8, 8), 2), y=np.array([1, 1, np.nan, 1], np.float16))
    result = run(a, b, "--json", "--quiet")
    assert result.exit_code == 0
    found = json.loads(result.stdout, parse_constant=pytest.fail)  # neither NaN nor Infinity
    names = {"weights", "relative_rmse", "max_error", "cosine", "sqnr_db", "nonfinite", "bits_per_weight"}
    assert set(found) == {"a", "b", "matched_by", "total", "tensors"}
    assert set(found["total"]) == names
    y, x = found["tensors"]
    assert set(x) == {*names, "name", "shape", "types"}
    assert (x["name"], x["shape"], x["types"], x["bits_per_weight"]) == (
        "x",
        [8, 8],
        ["f32", "f32"],
        [32, 32],
    )
    assert (y["name"], y["nonfinite"], y["sqnr_db"], y["types"]) == ("y", [0, 1], None, ["f32", "f16"])
    assert "tensors" not in json.loads(run(a, b, "--json", "--no-tensors").stdout)


def test_table(write):
    a, b = (
        write(name, **{"x\n": normal((8, 8), i), "y": np.ones(4, np.float32)}) for i, name in enumerate("ab")
    )
    result = run(a, b, "--jobs", "2")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "68 weights in 2 tensors, by name" in lines[2]
    assert lines[-2].split()[:4] == ["x\\n", "8", "x", "8"]
    assert lines[-1].split()[-5:] == ["0.000e+00", "0.000e+00", "1.00000000", "inf", "dB"]
    assert len(run(a, b, "--no-tensors").stdout.splitlines()) == 4


def test_errors_are_one_line(write):
    result = run(write("a", x=normal(2, 1)), write("b", y=normal(2, 1)))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert run("nowhere", "nowhere").exit_code == 1
    assert run("nowhere").exit_code == 2
