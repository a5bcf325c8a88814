"""Compiled searches: NumPy's bytes, and when they are used. Much of it is skipped where numba is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.quantizers import COMPILED, QUANTIZERS, SEARCHING, compiled, encode
from phiconv.quantizers.compiled import searches
from phiconv_formats.gguf.packing import pack

f32 = np.float32
rng = np.random.default_rng(0)


def edges():
    """Blocks of 256 that are hard for a search, some of each kind, and in all an odd number."""
    usual = rng.standard_normal((8, 256)) * 0.02
    outlier, mixed, far = usual.copy(), usual.copy(), usual.copy()
    outlier[:, 77], mixed[:, :32] = 3e3, 0
    far += 1e4
    huge, nan, infinite = usual * 1e17, usual.copy(), usual.copy()
    nan[0, 5], infinite[1, 9], infinite[2, 40] = np.nan, np.inf, -np.inf
    kinds = [
        usual,
        outlier,
        mixed,
        far,
        np.abs(usual),
        -np.abs(usual) - 0.25,
        usual * 1e-9,
        usual * 1e-36,  # whose squares vanish
        usual * 1e-42,  # subnormal
        huge,  # whose squares overflow
        usual * 10.0 ** rng.uniform(-6, 3, (8, 16)).repeat(16, axis=1),
        usual * (rng.random((8, 256)) < 0.1),
        rng.integers(-3, 4, (8, 256)) / 4,  # ties
        rng.choice([-1.0, 1.0], (8, 256)),
        np.full((4, 256), 0.125),
        np.full((4, 256), -0.125),
        np.where(rng.random((4, 256)) < 0.5, -0.0, 0.0),
        nan,
        infinite,
        usual[:1],
    ]
    return np.concatenate(kinds).astype(f32)


EDGES = edges()
WIDE = (rng.standard_t(4, (24, 1536)) * 0.02).astype(ir.BF16.dtype)


def importances(columns):
    rng = np.random.default_rng(columns)
    uneven = np.exp(rng.standard_normal(columns)).astype(f32)
    few = np.where(rng.random(columns) < 0.9, 0, uneven).astype(f32)  # from which come negative scales
    return [None, uneven, few]


def searched(encoding):
    """The importance weights with which an encoding is a search."""
    return [None, "uneven", "few"] if encoding in SEARCHING else ["uneven", "few"]


@pytest.fixture(scope="module")
def numba():
    """numba, and nothing that was left to NumPy."""
    module = pytest.importorskip("numba")
    yield module
    for search in searches.COMPILED:
        assert search._chosen in (None, search._compiled)


@pytest.mark.parametrize(
    ("encoding", "kind"),
    [(e, kind) for e in COMPILED for kind in searched(e)],
    ids=lambda value: getattr(value, "name", value),
)
def test_same_bytes(encoding, kind, numba):
    # The sign of a NaN that comes of importance weights depends in NumPy, too, on where in a tile it lies.
    edges = EDGES if kind is None else EDGES[np.isfinite(EDGES).all(axis=1)]
    for values in (edges, WIDE):
        importance = dict(zip((None, "uneven", "few"), importances(values.shape[1]), strict=True))[kind]
        expected = pack(QUANTIZERS[encoding](values, importance))
        np.testing.assert_array_equal(pack(COMPILED[encoding](values, importance)), expected)


@pytest.mark.parametrize("blocks", [1, 3, 64, 65])
def test_any_number_of_groups(blocks, numba):
    values = WIDE.reshape(-1, 256)[:blocks]
    for encoding in (ir.Q3_K, ir.Q4_K, ir.Q6_K):
        expected = pack(QUANTIZERS[encoding](values, None))
        np.testing.assert_array_equal(pack(COMPILED[encoding](values, None)), expected)


def test_threads_at_once(numba):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: pack(COMPILED[ir.Q4_K](WIDE, None)), range(8)))
    assert all(np.array_equal(other, pack(QUANTIZERS[ir.Q4_K](WIDE, None))) for other in made)


ELSEWHERE = """
import numpy as np
from phiconv import ir
from phiconv.quantizers import COMPILED, QUANTIZERS
from phiconv.quantizers.compiled import searches
from phiconv_formats.gguf.packing import pack
values = (np.random.default_rng(0).standard_t(4, (8, 1024)) * 0.02).astype(np.float32)
assert np.array_equal(*(pack(table[ir.Q6_K](values, None)) for table in (COMPILED, QUANTIZERS)))
linear = searches.COMPILED.linear
assert linear._chosen is linear._compiled
"""


def test_no_place_to_keep_it_and_another_processor(numba, tmp_path):
    """A package that cannot be written, no home, an instruction set without FMA or wide vectors."""
    environment = os.environ | {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserWideCacheLocator",
        "XDG_CACHE_HOME": os.devnull,
        "HOME": os.devnull,
        "LOCALAPPDATA": os.devnull,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ------------------------------------------------------------------------------------------- when it is used


@pytest.fixture
def fresh(monkeypatch):
    """A process that has searched nothing yet."""
    monkeypatch.setattr(compiled, "_usable", None)
    monkeypatch.setattr(compiled, "_expected", 0)
    monkeypatch.delenv("PHICONV_NUMBA", raising=False)
    return monkeypatch


@pytest.fixture
def pretended(fresh):
    """Numba is there, as far as can be seen."""
    fresh.setitem(sys.modules, "numba", SimpleNamespace(config=SimpleNamespace(DISABLE_JIT=0)))
    fresh.setattr(compiled.importlib.util, "find_spec", lambda _: object())
    return fresh


def test_it_is_used_when_enough_was_or_will_be_searched(pretended):
    most = compiled._WORTH - 1
    assert not compiled.expect(most)
    assert compiled.expect(1)
    assert compiled.expect(0)


def test_the_environment_says_always_or_never(pretended):
    pretended.setenv("PHICONV_NUMBA", "0")
    assert not compiled.available()
    assert not compiled.expect(1 << 40)
    pretended.setattr(compiled, "_usable", None)
    pretended.setenv("PHICONV_NUMBA", "1")
    assert compiled.expect(1)


@pytest.mark.parametrize("there", [None, SimpleNamespace(config=SimpleNamespace(DISABLE_JIT=1))])
def test_a_numba_that_does_not_work_is_not_used(there, pretended):
    pretended.setitem(sys.modules, "numba", there)  # None: importing it is an error
    assert not compiled.expect(1 << 40)


def test_a_search_that_fails_or_differs_is_numpys(monkeypatch):
    x = EDGES[:4, :32].T.copy()

    def broken(*_):
        raise OSError("no compiler")

    def wrong(x, limit):
        return np.zeros(x.shape[1], f32), np.zeros_like(x)

    in_numpy = searches.IN_NUMPY.descent
    for search in (broken, wrong):
        checked = searches._Checked(search, in_numpy, x, 4)
        assert searches._same(checked(x, 4), in_numpy(x, 4))


def test_what_is_no_search_does_not_count(fresh):
    values = WIDE[:1, :256]
    for encoding in (ir.Q8_0, ir.Q4_0):
        encode(values, encoding)
    encode(values, ir.Q4_K, effort="fast")
    assert compiled._expected == 0
    encode(values, ir.Q4_K)
    encode(values, ir.Q4_0, np.ones(256, f32))
    assert compiled._expected == 512


@pytest.mark.parametrize("quant", ["Q4_K_M", "Q3_K_M", "Q2_K"])
def test_whole_files(quant, numba, fresh, tmp_path):
    made = []
    for setting in "01":
        fresh.setattr(compiled, "_usable", None)
        fresh.setenv("PHICONV_NUMBA", setting)
        path = tmp_path / f"{setting}.gguf"
        phiconv.convert(FIXTURES / "tiny-phi3", path, quant=quant, receipt=False)
        assert bool(compiled._usable) == (setting == "1")
        made.append(path.read_bytes())
    assert made[0] == made[1]
