"""Tasks in threads, and the one thread that BLAS has meanwhile."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from phiconv.forward import threads


@pytest.fixture
def blas(monkeypatch):
    """A library whose number of threads is in a list."""
    count = [8]
    functions = (lambda: count[0], lambda number: count.__setitem__(0, number))
    monkeypatch.setattr(threads, "_blas_threads", lambda: functions)
    return count


def test_blas_has_one_thread_inside_and_as_many_as_before_outside(blas):
    with threads.parallel():
        assert blas == [1]
        with threads.parallel():
            assert blas == [1]
        assert blas == [1]
    assert blas == [8]
    with pytest.raises(ZeroDivisionError), threads.parallel():
        _ = 1 / 0
    assert blas == [8]


def test_two_users_at_once(blas):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with threads.parallel():
            entered.set()
            leave.wait()

    with threads.parallel():
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait()
    assert blas == [1]
    leave.set()
    thread.join()
    assert blas == [8]


@pytest.mark.parametrize("known", [True, False])
def test_every_task_is_done(known, monkeypatch):
    if not known:
        monkeypatch.setattr(threads, "_blas_threads", lambda: None)
    done = []
    threads.run(lambda i=i: done.append(i) for i in range(50))
    assert sorted(done) == list(range(50))
    values = np.zeros(1, np.float32)
    threads.run([lambda: np.divide(1, values, out=values)])  # no warning: they are errors here
    assert np.isinf(values[0])

    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        threads.run([fail, lambda: None])


def test_alone_is_in_this_thread():
    seen = []
    with threads.alone():
        threads.run([lambda: seen.append(threading.get_ident())] * 8)
    assert seen == [threading.get_ident()] * 8


def test_the_librarys_own_functions():
    found = threads._blas_threads()
    if found is None:
        pytest.skip("NumPy's BLAS is no OpenBLAS")
    before = found[0]()
    with threads.parallel():
        assert found[0]() == 1
    assert found[0]() == before
