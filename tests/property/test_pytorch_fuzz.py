"""Whatever is done to the bytes of a checkpoint, it opens or is refused; nothing else happens."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phiconv
from paths import FIXTURES
from phiconv.errors import PhiconvError
from phiconv_formats.pytorch.machine import run
from phiconv_formats.pytorch.opcodes import Stream

FILES = ["views.pt", "views_legacy.pt", "parameters.pt", "state_dict_4.pth", "types.pt"]

# Opcodes that fit together often enough to get somewhere.
PIECES = [
    b"(", b")", b"]", b"}", b"N", b"\x88", b"K\1", b"K\4", b"X\1\0\0\0w", b"X\7\0\0\0storage", b"q\0",
    b"h\0", b"\x94", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"R", b"b", b"Q", b"\x93",
    b"\x8a\x01\xff", b"G\0\0\0\0\0\0\0\0", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch\nSize\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch\nfloat16\n",
    b"cos\nsystem\n", b".", b"2", b"\x81", b"o",
]  # fmt: skip


@contextlib.contextmanager
def refusals():
    """Lets errors of the tree pass, and collects them."""
    found = []
    try:
        yield found
    except PhiconvError as error:
        found.append(error)
    assert all(str(error).isprintable() for error in found)


def opens(path):
    """Whether a file opens; every tensor of one that does is read, and checked against its checksum."""
    with refusals() as refused:
        model = phiconv.open_model(path)
        for tensor in model.stored.values():
            assert tensor.size < 1 << 20
            tensor.read(0, tensor.rows)
            assert not any(part.source.changed() for part in tensor.runs)
    return not refused


@pytest.mark.parametrize("name", FILES)
def test_the_files_open(name):
    assert opens(FIXTURES / "pytorch" / name)


@given(name=st.sampled_from(FILES), seed=st.integers(0, 2**32))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_changed_bytes(tmp_path, name, seed):
    data = bytearray((FIXTURES / "pytorch" / name).read_bytes())
    rng = np.random.default_rng(seed)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(data)))
        value = [int(rng.integers(0, 256)), 0, 0xFF, data[at] ^ (1 << int(rng.integers(0, 8)))]
        data[at : at + 1] = bytes([value[int(rng.integers(0, 4))]])
        if rng.integers(0, 8) == 0:
            del data[at : at + int(rng.integers(1, 9))]
    (tmp_path / "x.pt").write_bytes(data)
    opens(tmp_path / "x.pt")


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
@settings(max_examples=60)
def test_any_opcodes(pieces):
    with refusals():
        run(Stream(b"\x80\x02" + b"".join(pieces) + b".", Path("x")))


@given(data=st.binary(max_size=60))
@settings(max_examples=60)
def test_any_bytes(data):
    with refusals():
        run(Stream(data, Path("x")))


@given(
    shape=st.lists(st.integers(0, 6), max_size=4),
    stride=st.lists(st.integers(0, 40), min_size=4, max_size=4),
    offset=st.integers(0, 20),
)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_view_is_read_as_numpy_reads_it(make_pytorch, tmp_path, shape, stride, offset):
    values = np.arange(120, dtype=np.float32)
    stride = stride[: len(shape)]
    view = make_pytorch.Tensor(
        make_pytorch.Storage("0", "FloatStorage", 120), offset, tuple(shape), tuple(stride)
    )
    make_pytorch.write_zip(tmp_path / "x.pt", make_pytorch.whole({"w": view}), {"0": values.tobytes()})
    with refusals() as refused:
        found = phiconv.read(phiconv.open_model(tmp_path / "x.pt").stored["w"])
    if refused:
        return
    expected = np.lib.stride_tricks.as_strided(values[offset:], shape, [4 * s for s in stride])
    assert np.array_equal(found, expected)
