"""Work on a cluster: the same bytes, a worker that is killed, machines that do not share files."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import pytest
from click.testing import CliRunner

import phiconv
from paths import FIXTURES
from phiconv.cli import main
from phiconv.conversion import machines, rows
from phiconv.errors import OutputError, UsageError, WeightError

distributed = pytest.importorskip("distributed", reason="distributed is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # Dask's own, about ports, sockets and large messages

TINY = FIXTURES / "tiny-phi3"


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as local:
        yield local


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out.gguf", {"quant": "Q4_K_M"}),
        ("out", {"to": "onnx", "quant": "int4"}),
        ("mlx", {"to": "mlx", "quant": "4bit"}),
    ],
)
def test_bytes_are_those_of_one_machine(cluster, tmp_path, name, options):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here = phiconv.convert(TINY, tmp_path / "here" / name, **options)
    destination = tmp_path / "there" / name
    with phiconv.machines(cluster.scheduler_address, TINY, destination) as workers:
        assert workers.jobs == 2
        there = phiconv.convert(TINY, destination, executor=workers.executor, jobs=workers.jobs, **options)
    assert [path.name for path in here.files] == [path.name for path in there.files]
    for own, other in zip(here.files, there.files, strict=True):
        assert own.read_bytes() == other.read_bytes()


def test_the_command(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [str(TINY), "a.gguf", "--q8", "--quiet", "--no-receipt"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    arguments = [
        str(TINY),
        "b.gguf",
        "--q8",
        "--quiet",
        "--no-receipt",
        "--scheduler",
        cluster.scheduler_address,
    ]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0, told.output
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.gguf", "b.gguf"}


def test_a_worker_that_is_killed(cluster, tmp_path, monkeypatch):
    """Its tasks are done by others, or by itself once it is there again."""
    monkeypatch.setattr(rows, "SPAN", 1 << 16)
    phiconv.convert(TINY, tmp_path / "a.gguf", quant="Q4_K_M")
    with phiconv.machines(cluster.scheduler_address, TINY, tmp_path / "b.gguf") as workers:
        pids = [worker.process.pid for worker in cluster.workers.values()]
        killed = threading.Event()

        def kill(done, total, name):
            if not killed.is_set() and done > total // 4:
                os.kill(pids[0], signal.SIGKILL)
                killed.set()

        phiconv.convert(
            TINY, tmp_path / "b.gguf", quant="Q4_K_M", executor=workers.executor, jobs=2, progress=kill
        )
    assert killed.is_set()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_an_error_comes_back(cluster, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "m")
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-2] + b"\xc0\x7f")  # NaN as BF16
    with (
        pytest.raises(WeightError, match="NaN"),
        phiconv.machines(cluster.scheduler_address, folder, tmp_path / "a.gguf") as workers,
    ):
        phiconv.convert(folder, tmp_path / "a.gguf", quant="q8", executor=workers.executor)
    assert not [path for path in tmp_path.iterdir() if path != folder]


def test_files_that_workers_do_not_see(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "_stamp", lambda _: (time.time_ns(), 0))  # here alone
    with (
        pytest.raises(OutputError, match="sees another file"),
        phiconv.machines(cluster.scheduler_address, TINY, tmp_path / "a.gguf"),
    ):
        pass
    assert not [*tmp_path.iterdir()]


def test_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "_WAIT", 0.5)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(UsageError, match="no scheduler"), phiconv.machines(address, TINY, tmp_path / "a"):
            pass


def test_without_an_address_it_is_this_machine(tmp_path):
    with phiconv.machines(None, TINY, tmp_path / "a") as workers:
        assert workers == (None, None)
