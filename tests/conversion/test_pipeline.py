"""The streaming engine: same bytes from any executor, nothing half-written, weights checked on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import phiconv
from paths import FIXTURES
from phiconv import ir
from phiconv.conversion import pipeline
from phiconv_formats.gguf.packing import pack
from phiconv_formats.shared.output import OutputFile, Package, Segment, Stream

FIXTURE = FIXTURES / "tiny-phi3"


class ArraySource:
    """A tensor in memory."""

    label = "memory: w"

    def __init__(self, values, encoding):
        self.values = values
        self.encoding = encoding

    def read(self, start, stop):
        return self.values[start:stop].copy()

    def changed(self):
        return False


def pack_one(encoded):
    return (pack(encoded),)


def package_of(values, stored, target, row_bytes, name="o.bin"):
    """A file that holds one tensor and a head of 32 bytes."""
    tensor = ir.Tensor.of(ArraySource(values, stored), values.shape)
    stream = Stream("w", tensor, target, pack_one, (Segment(name, 32, row_bytes),))
    return Package((OutputFile(name, 32 + row_bytes * values.shape[0], ((0, b"head"),)),), (stream,))


def run(package, folder, **options):
    reports = pipeline.run(package, folder, **options)
    return reports, (folder / package.files[0].name).read_bytes()


def left_behind(folder):
    return sorted(p.name for p in folder.iterdir())


def test_bytes_are_those_of_one_whole_piece(tmp_path):
    values = np.random.default_rng(0).standard_normal((3000, 512), dtype=np.float32)
    _, data = run(package_of(values, ir.F32, ir.Q8_0, 512 // 32 * 34), tmp_path, jobs=3)
    from phiconv.quantizers import encode

    assert data[:32] == b"head".ljust(32, b"\0")
    assert data[32:] == pack(encode(values, ir.Q8_0)).tobytes()


@pytest.mark.parametrize("quant", ["q8", "f16", "Q5_1"])
def test_same_bytes_from_every_executor(tmp_path, quant):
    outputs = []
    for number, jobs in enumerate((1, 2, 5)):
        phiconv.convert(FIXTURE, tmp_path / f"{number}.gguf", quant=quant, jobs=jobs)
        outputs.append((tmp_path / f"{number}.gguf").read_bytes())
    with ThreadPoolExecutor(3) as pool:
        phiconv.convert(FIXTURE, tmp_path / "t.gguf", quant=quant, executor=pool)
        outputs.append((tmp_path / "t.gguf").read_bytes())
        assert pool.submit(int, "7").result() == 7, "a foreign executor lives on"
    assert len(set(outputs)) == 1


def test_same_bytes_from_processes(tmp_path):
    phiconv.convert(FIXTURE, tmp_path / "a.gguf", quant="q8")
    import multiprocessing

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        phiconv.convert(FIXTURE, tmp_path / "b.gguf", quant="q8", executor=pool)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_any_number_of_empty_rows(tmp_path, write_safetensors):
    source = write_safetensors({"a": {"dtype": "F32", "shape": [1 << 62, 0], "data_offsets": [0, 0]}})
    started = time.process_time()
    plain = phiconv.Choices(plain=True)
    phiconv.convert(source, tmp_path / "o", to="safetensors", quant="f32", choices=plain)
    assert phiconv.open_model(tmp_path / "o" / "model.safetensors").stored["a"].shape == (1 << 62, 0)
    assert phiconv.compare(source, source).total.weights == 0
    assert time.process_time() - started < 1


def test_progress_counts_every_weight(tmp_path):
    seen = []
    result = phiconv.convert(FIXTURE, tmp_path / "o.gguf", progress=lambda *call: seen.append(call))
    done, total, _ = seen[-1]
    assert done == total == sum(t.tensor.size for t in result.plan.package.streams)
    assert [d for d, _, _ in seen] == sorted(d for d, _, _ in seen)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("target", [ir.F32, ir.F16, ir.Q4_0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nonfinite_weights_are_refused(tmp_path, value, target, dtype):
    values = np.ones((700, 512), dtype=np.float32)
    values[600, 11] = value
    stored = {e.dtype: e for e in (ir.F32, ir.F16, ir.BF16)}[np.dtype(dtype)]
    package = package_of(
        values.astype(dtype), stored, target, {ir.F32: 2048, ir.F16: 1024, ir.Q4_0: 288}[target]
    )
    with pytest.raises(phiconv.WeightError, match=r"row 600, column 11.*--allow-nonfinite"):
        run(package, tmp_path)
    assert left_behind(tmp_path) == []
    reports, _ = run(package, tmp_path, allow_nonfinite=True)
    assert reports[0].nonfinite == 1


def test_overflow_is_counted_over_the_whole_tensor(tmp_path):
    values = np.ones((40_000, 256), dtype=np.float32)
    values[[0, 20_000, 39_999], 5] = [1e6, -70000, 65504]
    package = package_of(values, ir.F32, ir.F16, 512)
    with pytest.raises(phiconv.WeightError, match=r"2 weights are too large for f16.*--bf16"):
        run(package, tmp_path)
    assert left_behind(tmp_path) == []
    reports, _ = run(package, tmp_path, allow_nonfinite=True)
    assert (reports[0].nonfinite, reports[0].overflows) == (0, 2)


def test_overflow_of_a_block_scale(tmp_path):
    values = np.ones((10, 64), dtype=np.float32)
    values[3, 3] = 1e30
    with pytest.raises(phiconv.WeightError, match="1 block scales are too large for q8_0"):
        run(package_of(values, ir.F32, ir.Q8_0, 68), tmp_path)


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    values = np.ones((50_000, 256), dtype=np.float32)

    class Broken(ArraySource):
        def read(self, start, stop):
            if start > 30_000:
                raise phiconv.MalformedFileError("ends here", path="memory")
            return super().read(start, stop)

    tensor = ir.Tensor.of(Broken(values, ir.F32), values.shape)
    stream = Stream("w", tensor, ir.F32, pack_one, (Segment("o.bin", 0, 1024),))
    package = Package((OutputFile("o.bin", 1024 * 50_000, ()),), (stream,))
    with pytest.raises(phiconv.MalformedFileError, match="ends here"):
        run(package, tmp_path)
    assert left_behind(tmp_path) == []


def test_a_source_that_changes_meanwhile(tmp_path):
    values = np.ones((4, 32), dtype=np.float32)
    package = package_of(values, ir.F32, ir.F32, 128)
    package.streams[0].tensor.runs[0].source.changed = lambda: True
    with pytest.raises(phiconv.MalformedFileError, match="changed while it was read"):
        run(package, tmp_path)
    assert left_behind(tmp_path) == []


def test_existing_outputs_are_kept(tmp_path):
    target = tmp_path / "o.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(phiconv.OutputExistsError, match="--force"):
        phiconv.convert(FIXTURE, target)
    assert target.read_bytes() == b"mine"
    phiconv.convert(FIXTURE, target, force=True)
    assert target.read_bytes()[:4] == b"GGUF"
    assert left_behind(tmp_path) == ["o.gguf", "o.gguf.receipt.json"]


def test_output_has_the_usual_permissions(tmp_path):
    phiconv.convert(FIXTURE, tmp_path / "o.gguf")
    (tmp_path / "plain").touch()
    assert (tmp_path / "o.gguf").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_full_disk(tmp_path, monkeypatch):
    """The reservation fails as it does on a disk that is full."""
    import errno

    def fallocate(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(phiconv.DiskFullError, match="disk is full"):
        phiconv.convert(FIXTURE, tmp_path / "o.gguf")
    assert left_behind(tmp_path) == []


def test_full_disk_in_the_middle(tmp_path, monkeypatch):
    import errno

    real, count = os.pwrite, [0]

    def pwrite(*arguments):
        count[0] += 1
        if count[0] > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(phiconv.DiskFullError, match="disk is full"):
        phiconv.convert(FIXTURE, tmp_path / "o.gguf")
    assert left_behind(tmp_path) == []


def test_too_little_space_is_known_before_the_work(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(phiconv.DiskFullError, match=r"needs 11\.7 MB, and 1\.0 kB are free"):
        phiconv.convert(FIXTURE, tmp_path / "o.gguf")
    assert left_behind(tmp_path) == []


SLOW_CONVERSION = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from phiconv.conversion import pipeline, rows
rows.SPAN = rows.TILE = 1 << 14
real = pipeline.convert_span
def slow(*arguments):
    time.sleep(0.03)
    return real(*arguments)
pipeline.convert_span = slow
print("started", flush=True)
sys.argv[0] = "phiconv"
from phiconv.cli import main
main([sys.argv[1], sys.argv[2], "--q8", "--quiet"])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_at_any_moment(tmp_path, delay, number):
    target = tmp_path / "o.gguf"
    command = [sys.executable, "-c", SLOW_CONVERSION, str(FIXTURE), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert not target.exists()
    if number != signal.SIGKILL and delay > 0.1:
        assert left_behind(tmp_path) == []
        by = "" if number == signal.SIGINT else " by SIGTERM"
        assert (process.returncode, errors) == (128 + number, f"phiconv: interrupted{by}\n")


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Tiles under way are bounded, however large the tensor: counted, not timed."""
    lock, alive, most = threading.Lock(), [0], [0]
    values = np.zeros((64, 1 << 18), dtype=np.float32)

    class Counting(ArraySource):
        def read(self, start, stop):
            with lock:
                alive[0] += stop - start
                most[0] = max(most[0], alive[0])
            return super().read(start, stop)

    def pack_and_count(encoded):
        with lock:
            alive[0] -= encoded.shape[0]
        return pack_one(encoded)

    tensor = ir.Tensor.of(Counting(values, ir.F32), values.shape)
    stream = Stream("w", tensor, ir.F16, pack_and_count, (Segment("o.bin", 0, 1 << 19),))
    package = Package((OutputFile("o.bin", 64 << 19, ()),), (stream,))
    run(package, tmp_path, jobs=2)
    assert most[0] <= 2, "one tile of a row for each of two workers"
