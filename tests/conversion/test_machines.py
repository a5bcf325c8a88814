"""Work on a cluster: the same bytes, a worker that is killed, machines that do not share files."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner

import phiconv
from paths import FIXTURES
from phiconv.cli import main
from phiconv.conversion import machines, rows, tasks
from phiconv.errors import OutputError, UsageError, WeightError, WorkerError
from phiconv.quality import batches

distributed = pytest.importorskip("distributed", reason="distributed is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # Dask's own, about ports, sockets and large messages

TINY = FIXTURES / "tiny-phi3"
IDS = np.random.default_rng(5).integers(0, 1000, 1024)


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as local:
        yield local


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory):
    """One layer, with blocks of 256 weights."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    return make_model(tmp_path_factory.mktemp("model") / "m", "phi3", **sizes, **heads)


def killer(cluster):
    """A progress that kills a worker when a quarter is done; and whether it has."""
    pids, killed = [worker.process.pid for worker in cluster.workers.values()], threading.Event()

    def kill(done, total, name):
        if not killed.is_set() and done > total // 4:
            os.kill(pids[0], signal.SIGKILL)
            killed.set()

    return kill, killed


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "options"),
    [("out", {"to": "onnx", "quant": "int4"}), ("mlx", {"to": "mlx", "quant": "4bit"})],
)
def test_bytes_are_those_of_one_machine(cluster, model, tmp_path, name, options):
    destination = tmp_path / name
    here = phiconv.convert(model, tmp_path / "here" / name, **options)
    with phiconv.machines(cluster.scheduler_address, model, destination) as workers:
        assert workers.jobs == 2
        there = phiconv.convert(model, destination, executor=workers.executor, jobs=workers.jobs, **options)
    assert [path.name for path in here.files] == [path.name for path in there.files]
    for own, other in zip(here.files, there.files, strict=True):
        assert own.read_bytes() == other.read_bytes()


def test_a_worker_that_is_killed(cluster, model, tmp_path, monkeypatch):
    """Its tasks are done by others, or by itself once it is there again."""
    monkeypatch.setattr(rows, "SPAN", 1 << 16)
    (tmp_path / "here").mkdir()
    phiconv.convert(model, tmp_path / "here" / "a.gguf", quant="Q4_K_M")
    (tmp_path / "there").mkdir()
    destination = tmp_path / "there" / "a.gguf"
    with phiconv.machines(cluster.scheduler_address, model, destination) as workers:
        kill, killed = killer(cluster)
        phiconv.convert(model, destination, quant="Q4_K_M", executor=workers.executor, jobs=2, progress=kill)
    assert killed.is_set()
    assert files(tmp_path / "here") == files(tmp_path / "there")


# ------------------------------------------------------------------------------------------------- measuring


@pytest.fixture(scope="module")
def measured(model_folder, tmp_path_factory):
    """A model with experts, some tokens, and what was measured of it on this machine."""
    model, folder = model_folder("phimoe"), tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_TOKENS", 256)
        yield model, measure(model, folder, {})


def measure(model, folder, where):
    """A calibration folder, an importance matrix, and evaluations with what is kept of the reference."""
    options = {"context": 8, **where}
    phiconv.calibrate(model, IDS, folder / "c", tokens=512, sensitivity=True, **options)
    phiconv.calibrate(model, IDS[:600], folder / "i.gguf", **{**options, "progress": None})
    kept = {"reference": model, "reference_file": folder / "r", **options, "progress": None}
    return [phiconv.evaluate(model, IDS[:600], **kept) for _ in range(2)], files(folder / "c"), folder


def test_what_is_measured_is_that_of_one_machine(cluster, measured, tmp_path):
    """Workers add up products, keep inputs and a reference; and one of them is killed."""
    model, (evaluations, folder, here) = measured
    with phiconv.machines(cluster.scheduler_address, model, tmp_path / "c") as workers:
        kill, killed = killer(cluster)
        where = {"executor": workers.executor, "jobs": 2, "progress": kill}
        found, folder_there, there = measure(model, tmp_path, where)
    assert killed.is_set()
    assert found == evaluations
    assert folder_there == folder
    assert {"moments", "inputs"} <= {name.split(".")[-2] for name in folder}
    for name in ("i.gguf", "r"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "i.gguf", "r"]


@pytest.mark.parametrize("tokens", [512, 1024])  # so many are enough for one matrix after the other
def test_the_best_codes_are_those_of_one_machine(cluster, make_model, tmp_path, monkeypatch, tokens):
    model = make_model(tmp_path / "m", "phi3", num_hidden_layers=1)
    options = {"quant": "Q4_0", "choices": phiconv.Choices(effort="best")}
    (tmp_path / "there").mkdir()
    calibration = phiconv.calibrate(model, IDS % 300, tmp_path / "c", context=16, tokens=tokens)
    (tmp_path / "here").mkdir()
    phiconv.convert(model, tmp_path / "here" / "a.gguf", calibration=calibration, **options)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # other machines would not see it
    destination = tmp_path / "there" / "a.gguf"
    with phiconv.machines(cluster.scheduler_address, [model, calibration], destination) as workers:
        where = {"executor": workers.executor, "jobs": 2}
        phiconv.convert(model, destination, calibration=calibration, **where, **options)
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_a_worker_that_rounds_otherwise(monkeypatch):
    answers = itertools.chain(["this"], itertools.repeat("that"))
    monkeypatch.setattr(tasks, "rounding", lambda: next(answers))
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(WorkerError, match="rounds otherwise"),
    ):
        phiconv.evaluate(TINY, [*range(70, 90)], context=8, executor=pool)


def test_the_commands(cluster, model, tmp_path, monkeypatch):
    """Workers are in folders of their own, so that paths are made absolute."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 4)
    scheduler = ["--scheduler", cluster.scheduler_address]

    def run(*arguments):
        told = CliRunner().invoke(main, arguments)
        assert told.exit_code == 0, told.output
        return told.stdout

    for name, where in (("a", []), ("b", scheduler)):
        run(str(model), f"{name}.gguf", "--q8", "--quiet", "--no-receipt", *where)
        run("calibrate", "a.gguf", "--text=text.txt", "-q", "--context=8", "-o", f"{name}.json", *where)
    for name in ("gguf", "json"):
        assert (tmp_path / f"a.{name}").read_bytes() == (tmp_path / f"b.{name}").read_bytes()
    for command in (
        ["evaluate", "a.gguf", "--text=text.txt", "-q", "--context=8"],
        ["compare", str(tmp_path / "a.gguf"), str(model), "-q"],
    ):
        assert run(*command) == run(*command, *scheduler)
    assert {path.name for path in tmp_path.iterdir()} == {"a.gguf", "b.gguf", "a.json", "b.json", "text.txt"}


# ------------------------------------------------------------------------------------------------- refusals


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
