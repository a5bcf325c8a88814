"""The better quantizer against plain loops, brute force, and what no input may break."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiconv import ir
from phiconv.errors import UsageError
from phiconv.ir import BlockEncoding, Blocks
from phiconv.quantizers import decode, encode
from phiconv.quantizers.best import best, choose, keep_better, merged, output_error, sample, shrunk, supports
from phiconv.quantizers.best.descent import Descent
from phiconv.quantizers.best.kinds import kind_of
from phiconv.quantizers.best.metric import Metric
from phiconv_formats.gguf import packing as gguf
from phiconv_formats.mlx import packing as mlx
from phiconv_formats.openvino import packing as openvino

PACKERS = {"openvino": openvino.pack, "mlx": mlx.pack}
ENCODINGS = (
    *(ir.Q4_0, ir.Q5_0, ir.Q8_0, ir.Q4_1, ir.Q5_1, ir.Q2_K, ir.Q3_K, ir.Q4_K, ir.Q5_K, ir.Q6_K),
    *(ir.IQ4_NL, ir.IQ4_XS, ir.openvino_nf4(64)),
    *(ir.mlx_affine(bits, 64, ir.BF16) for bits in (2, 3, 4, 5, 6, 8)),
    *(ir.mlx_affine(4, 32, ir.F16), ir.mlx_affine(4, 128, ir.F32)),
    *(ir.onnx_affine(b, 32, ir.F16, symmetric=s) for b in (4, 8) for s in (True, False)),
    *(ir.onnx_affine(4, 16, ir.F32), ir.onnx_affine(4, 256, ir.BF16, symmetric=False)),
    *(ir.onnx_affine(4, 32, ir.F16, symmetric=False, method=m) for m in ("rtn", "k_quant", "qdq")),
    *(ir.openvino_affine(b, 128, symmetric=s) for b in (4, 8) for s in (True, False)),
    *(ir.openvino_affine(8, 512, symmetric=s) for s in (True, False)),
)
EVERY = pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)


def inputs(columns: int, tokens: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs, of columns that differ in size."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((tokens, max(columns // 8, 1))) @ rng.standard_normal(
        (max(columns // 8, 1), columns)
    )
    x = factors / np.sqrt(max(columns // 8, 1)) + 0.5 * rng.standard_normal((tokens, columns))
    return (x * np.exp(rng.normal(0, 1, columns))).astype(np.float32)


def second_moment(x: np.ndarray) -> np.ndarray:
    return (x.T @ x / np.float32(max(len(x), 1))).astype(np.float32)


def weights(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.02).astype(np.float32)


def errors(values, blocks, moments):
    return output_error(values, decode(blocks, values.shape[1]), moments=moments)


def same(a: Blocks, b: Blocks) -> bool:
    names = ("codes", "scales", "minima", "sub_scales", "sub_minima", "zero_points")
    return all(
        getattr(a, name) is None or getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in names
    )


# ----------------------------------------------------------------------------------------- what it must reach


@EVERY
def test_less_error_than_the_runtimes_own_quantizer_and_blocks_that_can_be_packed(encoding):
    values, moments = weights(24, 512), shrunk(second_moment(inputs(512, 600)), 0.3)
    default = encode(values, encoding)
    found = best(values, encoding, moments)
    ratio = errors(values, found, moments) / errors(values, default, moments)
    assert ratio.max() < 0.8
    for name in ("codes", "scales", "minima", "sub_scales", "sub_minima", "zero_points"):
        mine, theirs = getattr(found, name), getattr(default, name)
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    assert found.encoding == encoding
    assert np.isfinite(found.scales).all()
    for target, pack in PACKERS.items():
        if encoding.name.startswith(target):
            pack(found)
    if encoding.name.startswith(("q", "iq")):
        assert same(gguf.unpack(gguf.pack(found), encoding), found)


@EVERY
def test_every_sweep_lessens_the_error_of_every_row(encoding):
    values, metric, kind = (
        weights(20, 512),
        Metric(shrunk(second_moment(inputs(512, 300)), 0.1)),
        kind_of(encoding),
    )
    x = values.T.copy()
    with np.errstate(all="ignore"):
        descent = Descent(metric, kind, x, kind.search(x, metric.weights))
        before = metric.total(descent.errors, descent.scale)
        for _ in range(4):
            descent.sweep()
            after = metric.total(descent.errors, descent.scale)
            assert (after <= before * (1 + 1e-6)).all()
            before = after
    reached = kind.blocks(descent.fit)
    assert errors(values, reached, shrunk(second_moment(inputs(512, 300)), 0.1)) == pytest.approx(
        after, rel=1e-3
    )
    assert same(kind.blocks(kind.read(reached, 20)), reached)


# ------------------------------------------------------------------------------------------ the plain version


def test_codes_are_those_of_plain_loops():
    encoding, columns = ir.Q4_0, 96
    values, moments = weights(6, columns), shrunk(second_moment(inputs(columns, 200)), 0.3)
    kind, metric = kind_of(encoding), Metric(moments)
    x = values.T.copy()
    fit = kind.search(x, metric.weights)
    descent = Descent(metric, kind, x, fit)
    kind_without_refit = type("Fixed", (), {
        "group": 32, "levels": kind.levels, "has_low": False, "refit": lambda *_: False,
    })()  # fmt: skip
    descent.kind = kind_without_refit
    plain, scales = fit.levels.astype(np.float64), np.repeat(fit.scale, 32, axis=0).astype(np.float64)
    for _ in range(2):
        descent.sweep()
    for row in range(6):
        levels = plain[:, row]
        for _ in range(2):
            for j in range(columns):
                products = moments[j].astype(np.float64) @ (x[:, row] - scales[:, row] * levels)
                wanted = levels[j] + products / (float(moments[j, j]) * scales[j, row])
                levels[j] = np.clip(np.rint(wanted), -8, 7)
    assert np.array_equal(fit.levels, plain)


def test_a_refit_is_the_best_scale_and_minimum_for_the_codes():
    encoding = ir.mlx_affine(4, 32, ir.F32)
    values, moments = weights(5, 64), shrunk(second_moment(inputs(64, 200)), 0.1)
    kind, metric = kind_of(encoding), Metric(moments)
    x = values.T.copy()
    descent = Descent(metric, kind, x, kind.search(x, metric.weights))
    part = metric.rows(0, 64)
    assert descent._refit(0, part[:32, :32], (part @ descent.errors)[:32])
    h, fit = moments.astype(np.float64), descent.fit
    for row in range(5):
        rest = x[:, row].astype(np.float64)
        rest[32:] -= fit.levels[32:, row] * fit.scale[1, row] + fit.low[1, row]
        basis = np.zeros((64, 2))
        basis[:32, 0], basis[:32, 1] = fit.levels[:32, row], 1
        expected = np.linalg.solve(basis.T @ h @ basis, basis.T @ h @ rest)
        assert [fit.scale[0, row], fit.low[0, row]] == pytest.approx(expected, rel=1e-3)


def test_small_rows_come_close_to_the_best_there_is():
    encoding = BlockEncoding("two bits", 4, 2, has_minimum=True, scale_type=ir.F32)
    values, moments = weights(40, 4), shrunk(second_moment(inputs(4, 50)), 0.0)
    codes = np.array(list(itertools.product(range(4), repeat=4)), np.float64)
    h, least = moments.astype(np.float64), np.full(40, np.inf)
    for row, x in enumerate(values.astype(np.float64)):
        for u in codes:
            basis = np.stack([u, np.ones(4)], axis=1)
            solution = np.linalg.lstsq(basis.T @ h @ basis, basis.T @ h @ x, rcond=None)[0]
            missing = x - basis @ solution
            least[row] = min(least[row], missing @ h @ missing)
    default = Blocks(encoding, np.zeros((1, 40, 4), np.uint8), np.zeros(40, np.float32), values.mean(axis=1))
    found = errors(values, best(values, encoding, moments, sweeps=8, default=default), moments)
    assert (found >= least * (1 - 1e-4)).all()
    assert np.median(found / least) < 1.3


# --------------------------------------------------------------------------------------------------- the same


@pytest.mark.parametrize("encoding", [ir.Q4_0, ir.Q4_K, ir.mlx_affine(4, 64, ir.BF16)], ids=lambda e: e.name)
def test_rows_do_not_depend_on_each_other(encoding):
    values, moments = weights(53, 512), shrunk(second_moment(inputs(512, 200)), 0.3)
    whole = best(values, encoding, moments)
    for cuts in ((0, 1, 2, 53), (0, 7, 24, 53)):
        parts = [best(values[a:b], encoding, moments) for a, b in itertools.pairwise(cuts)]
        assert same(Blocks.join(parts), whole)


_PRINT_BYTES = """
import sys, hashlib
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_best import *
x = np.random.default_rng(0).integers(-9, 9, (100, 768)).astype(float)
x[:, 1:] += x[:, :-1]  # whole numbers: their moments are the same on all processors
values, moments = weights(130, 768), shrunk((x.T @ x / 100).astype(np.float32), 0.3)
for encoding in (ir.Q4_0, ir.Q4_K):
    found = best(values, encoding, moments)
    print(hashlib.sha256(found.codes.tobytes() + found.scales.tobytes()).hexdigest())
"""


def test_threads_and_processors_do_not_change_a_byte():
    # OpenBLAS, if NumPy has it, takes these; whatever else multiplies matrices ignores them.
    outputs = set()
    for threads, processor in (("1", ""), ("2", "Haswell"), ("1", "Prescott")):
        environment = {
            **os.environ, "OPENBLAS_NUM_THREADS": threads, "OPENBLAS_CORETYPE": processor,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        command = [sys.executable, "-c", _PRINT_BYTES, str(Path(__file__).parent)]
        outputs.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(outputs) == 1


def test_moments_in_parts_are_a_matrix_without_correlations_between_them():
    moments = shrunk(second_moment(inputs(512, 200)), 0.3)
    parts = [moments[:256, :256].copy(), moments[256:, 256:].copy()]
    whole = np.zeros_like(moments)
    whole[:256, :256], whole[256:, 256:] = parts
    values = weights(9, 512)
    for encoding in (ir.Q4_K, ir.Q4_0, ir.onnx_affine(4, 32, ir.F16, symmetric=False)):
        pieces, at_once = (errors(values, best(values, encoding, m), whole) for m in (parts, whole))
        assert pieces.sum() == pytest.approx(at_once.sum(), rel=0.01)
    with pytest.raises(UsageError, match="moments"):
        best(values, ir.Q4_K, [moments[:128, :128], moments[128:, 128:]])


# ------------------------------------------------------------------------------------------------ any numbers


@settings(max_examples=25, deadline=None)
@given(
    encoding=st.sampled_from(ENCODINGS),
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([0, 1, 5, 700]),
    size=st.sampled_from([1e-30, 1e-7, 1e-3, 1.0, 3e4, 1e20]),
    spoil=st.sampled_from(
        ["", "zero row", "constant", "dead columns", "nan", "infinite", "outliers", "same"]
    ),
)
def test_never_worse_than_the_runtimes_own(encoding, seed, tokens, size, spoil):
    rng = np.random.default_rng(seed)
    values, x = weights(5, 512, seed) / np.float32(0.02) * np.float32(size), inputs(512, tokens, seed)
    if spoil == "zero row":
        values[1] = 0
    elif spoil == "constant":
        values[2] = size
        x[:] = 1
    elif spoil == "dead columns":
        x[:, rng.integers(0, 512, 200)] = 0
        x[:, 256:320] = 0
    elif spoil in ("nan", "infinite"):
        values[3, 17] = np.nan if spoil == "nan" else np.inf
    elif spoil == "outliers":
        x[:, :3] *= 1000
        values[:, ::50] *= 50
    elif spoil == "same":
        x[:] = x[:, :1]
    raw = second_moment(x)
    for moments in (shrunk(raw, 0.1), raw):
        default = encode(values, encoding)
        found = best(values, encoding, moments, sweeps=2)
        with np.errstate(all="ignore"):
            mine, theirs = errors(values, found, moments), errors(values, default, moments)
        ordinary = np.isfinite(theirs) & np.isfinite(values).all(axis=1)
        # The digits that float32 has for a moment of few tokens, in which nearly everything may cancel.
        with np.errstate(all="ignore"):
            gross = np.abs(decode(default, 512).astype(np.float64) - values) @ np.sqrt(raw.diagonal())
            floor = 1e-7 * gross * gross
        assert (mine[ordinary] <= theirs[ordinary] * (1 + 1e-4) + floor[ordinary]).all()
        rest = np.flatnonzero(~np.isfinite(values).all(axis=1))
        per_row = len(found) // 5
        for row in rest:
            where = np.arange(row * per_row, (row + 1) * per_row)
            assert same(found.take(where), default.take(where))
        finite = np.isfinite(default.scales)
        assert np.isfinite(found.scales[finite]).all()
        if found.minima is not None:
            assert np.isfinite(found.minima[np.isfinite(default.minima)]).all()


# ----------------------------------------------------------------------------------------------- the metric


def test_output_error_from_inputs_and_from_their_moment_are_the_same():
    x, values = inputs(64, 90), weights(7, 64)
    other = decode(encode(values, ir.Q4_0), 64)
    plain = (((values.astype(np.float64) - other) @ x.T) ** 2).mean(axis=1)
    assert output_error(values, other, inputs=x) == pytest.approx(plain)
    assert output_error(values, other, moments=second_moment(x)) == pytest.approx(plain, rel=1e-4)


def test_shrunk():
    moments = np.array([[4, 1], [1, 2]], np.float32)
    assert shrunk(moments, 0.5) == pytest.approx(np.array([[6.03, 1], [1, 3.03]]))
    assert shrunk(moments, np.inf) == pytest.approx(np.array([[4.03, 0], [0, 2.03]]))
    assert np.array_equal(shrunk(np.zeros((2, 2), np.float32), 0.5), np.eye(2))
    assert moments[0, 0] == 4


# ----------------------------------------------------------------------------------------------- the choice


def test_of_little_text_correlations_are_not_trusted_and_of_much_they_are():
    values = weights(32, 256)
    everything = inputs(256, 9000, seed=3)
    check = second_moment(everything[5000:])
    default = encode(values, ir.Q4_0)
    amounts = {}
    for tokens in (40, 5000):
        choice = choose(values, ir.Q4_0, second_moment(everything[:tokens]), default, moments=check)
        amounts[tokens] = choice.amount
        assert choice.error < choice.default_error
    assert amounts[40] > amounts[5000]


def test_the_runtimes_own_codes_stay_where_text_says_nothing_about_other_text():
    values = weights(16, 128)
    fit, check = np.zeros((128, 128), np.float32), np.zeros((128, 128), np.float32)
    fit[:64, :64], check[64:, 64:] = second_moment(inputs(64, 10)), second_moment(inputs(64, 99))
    default = best(values, ir.Q4_0, shrunk(check, 0))
    choice = choose(values, ir.Q4_0, fit, default, moments=check)
    assert choice.amount is None
    assert choice.error == choice.default_error
    found = best(values, ir.Q4_0, fit, default=encode(values, ir.Q4_0))
    kept = keep_better(values, found, default, moments=check)
    assert (errors(values, kept, check) <= errors(values, default, check)).all()


def test_merged_takes_whole_rows():
    values = weights(3, 64)
    first, second = encode(values, ir.Q4_1), encode(values + 1, ir.Q4_1)
    both = decode(merged(first, second, np.array([False, True, False])), 64)
    assert np.array_equal(both[[0, 2]], decode(first, 64)[[0, 2]])
    assert np.array_equal(both[1], decode(second, 64)[1])


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (5, 5), (64, 64), (1000, 64), (0, 0)])
def test_a_sample_is_spread_over_all_rows(rows, count):
    taken = sample(rows)
    assert len(set(taken)) == len(taken) == count
    assert all(0 <= row < rows for row in taken)


def test_what_is_not_supported_is_said():
    assert not supports(ir.F16)
    assert not supports(ir.IQ2_XXS)
    assert not supports(ir.MXFP4)
    with pytest.raises(UsageError, match="mxfp4"):
        best(weights(2, 32), ir.MXFP4, np.eye(32, dtype=np.float32))


def test_no_rows():
    assert len(best(weights(0, 32), ir.Q4_0, np.eye(32, dtype=np.float32))) == 0
