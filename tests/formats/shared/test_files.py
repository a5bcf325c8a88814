"""Reading at offsets: every byte right, from any thread or process, and nothing but regular files."""

from __future__ import annotations

import errno
import os
import pickle  # of our own objects, between our own processes
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from phiconv import ir
from phiconv.errors import InputError, MalformedFileError, MissingFileError
from phiconv_formats.shared import files
from phiconv_formats.shared.files import InputFile, read_small_file
from phiconv_formats.shared.rows import FileRows

DATA = bytes(range(256)) * 40

needs_preadv = pytest.mark.skipif(not hasattr(os, "preadv"), reason="the system has no preadv")
needs_links = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX file system")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("has_preadv", [True, False])
def test_reads_at_any_offset_from_many_threads(path, monkeypatch, has_preadv):
    monkeypatch.setattr(files, "_HAS_PREADV", has_preadv and hasattr(os, "preadv"))
    with InputFile(path) as file, ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda start: file.read_bytes(start, 77), range(0, len(DATA) - 77, 5)))
    assert pieces == [DATA[start : start + 77] for start in range(0, len(DATA) - 77, 5)]


@needs_preadv
def test_short_reads_are_continued(path, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:13]], at))
    assert InputFile(path).read_bytes(3, 1000) == DATA[3:1003]


@needs_preadv
def test_an_error_of_the_device_is_an_input_error(path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(InputError, match="byte 7: cannot be read: Input/output error"):
        InputFile(path).read_bytes(7, 1)


@pytest.mark.parametrize(("offset", "count"), [(len(DATA), 1), (len(DATA) - 1, 2), (-1, 1), (0, 1 << 60)])
def test_the_end_of_the_file_is_named(path, offset, count):
    with pytest.raises(MalformedFileError, match=r"ends at byte 10240.*truncated"):
        InputFile(path).read_bytes(offset, count)


def test_a_file_that_shrinks_while_it_is_read(path):
    with InputFile(path) as file:
        path.write_bytes(DATA[:100])
        with pytest.raises(MalformedFileError, match="ends at byte 100"):
            file.read_bytes(50, 100)


def test_empty_reads(path):
    file = InputFile(path)
    assert file.read_bytes(0, 0) == file.read_bytes(len(DATA), 0) == b""
    file.read_into(5, np.empty((0, 4), np.uint8).data)


def test_reads_into_an_array(path):
    array = np.empty((10, 16), np.uint8)
    InputFile(path).read_into(32, array.data)
    assert array.tobytes() == DATA[32:192]


def test_it_opens_lazily_and_again(path):
    file = InputFile(path)
    assert file.size == len(DATA)
    file.close()
    file.close()
    assert file.read_bytes(0, 4) == DATA[:4]


def test_closing_it_closes_the_descriptor(path):
    with InputFile(path) as file:
        descriptor = file._descriptor
        os.fstat(descriptor)
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_it_is_closed_with_its_last_reference(path):
    file = InputFile(path)
    descriptor = file._open()
    del file
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_pickled_copy_opens_the_file_again(path):
    file = InputFile(path)
    assert file.size
    copy = pickle.loads(pickle.dumps(file))  # noqa: S301
    assert copy._descriptor == -1
    assert copy.read_bytes(10, 5) == DATA[10:15]


def test_a_pickled_copy_refuses_another_version(path):
    file = InputFile(path)
    assert not file.changed()
    copy = pickle.loads(pickle.dumps(file))  # noqa: S301
    path.write_bytes(DATA + b"more")
    with pytest.raises(MalformedFileError, match="changed while"):
        copy.read_bytes(0, 1)


def test_a_copy_on_another_machine_has_another_device_number(path, monkeypatch):
    """File systems that both have mounted are numbered by each machine in its own way."""
    file = InputFile(path)
    stamp = file._first_stamp()
    file._stamp = stamp._replace(device=stamp.device + 1)
    data = pickle.dumps(file)
    with pytest.raises(MalformedFileError, match="changed while"):
        pickle.loads(data).read_bytes(0, 1)  # noqa: S301
    monkeypatch.setattr("platform.node", lambda: "another")
    assert pickle.loads(data).read_bytes(0, 1) == DATA[:1]  # noqa: S301
    path.write_bytes(DATA + b"more")
    with pytest.raises(MalformedFileError, match="changed while"):
        pickle.loads(data).read_bytes(0, 1)  # noqa: S301


def test_changed(path, tmp_path):
    file = InputFile(path)
    assert not file.changed()
    os.utime(path, ns=(0, 0))
    assert file.changed()
    other = InputFile(path)
    assert not other.changed()
    other.close()
    file.close()
    path.unlink()
    with pytest.raises(
        MissingFileError, match=r"was read, and whether it has changed since cannot be told: the"
    ):
        other.changed()


def test_a_change_that_hides_behind_an_older_time(path):
    file = InputFile(path)
    file.read_bytes(0, 1)
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.changed()
    with InputFile(path) as file:
        path.with_name("link").hardlink_to(path)  # the bytes are the same
        assert not file.changed()
        file.close()
        assert file.read_bytes(0, 1) == b"\0"


def test_what_cannot_be_opened_has_not_changed(path, monkeypatch):
    file = InputFile(path)
    assert not file.changed()
    real = os.open

    def many(name, *arguments):
        if os.fspath(name) == os.fspath(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(name, *arguments)

    monkeypatch.setattr(os, "open", many)
    with pytest.raises(InputError, match=r"whether it has changed .* cannot be opened: Too many open files"):
        file.changed()


def open_now(files):
    return sum(file._descriptor >= 0 for file in files)


def test_few_of_many_files_are_open(tmp_path):
    for number in range(100):
        (tmp_path / f"{number}").write_bytes(bytes([number] * 4))
    files = [InputFile(tmp_path / f"{number}") for number in range(100)]
    for _ in range(2):
        for number, file in enumerate(files):
            assert file.read_bytes(0, 4) == bytes([number] * 4)
    assert 1 < open_now(files) <= 24


@needs_preadv
def test_a_file_that_is_read_stays_open(tmp_path, monkeypatch):
    for number in range(40):
        (tmp_path / f"{number}").write_bytes(bytes([number] * 4))
    first, *others = (InputFile(tmp_path / f"{number}") for number in range(40))
    real = os.preadv

    def while_others_are(descriptor, *arguments):
        if first._descriptor != descriptor:
            return real(descriptor, *arguments)
        assert {file.read_bytes(0, 4)[0] for file in others} == {*range(1, 40)}
        return real(descriptor, *arguments)

    monkeypatch.setattr(os, "preadv", while_others_are)
    assert first.read_bytes(0, 4) == bytes(4)
    assert open_now([first, *others]) <= 25


def test_many_threads_read_many_files(tmp_path):
    data = {f"{number}": os.urandom(4096) for number in range(60)}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    files = {name: InputFile(tmp_path / name) for name in data}

    def read(number):
        name = f"{number * 7 % 60}"
        return files[name].read_bytes(number % 64, 4000) == data[name][number % 64 :][:4000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(2000)))
    assert open_now(files.values()) <= 24 + 8


def test_identity_is_the_same_for_one_file(path, tmp_path):
    os.link(path, tmp_path / "hard")
    (tmp_path / "copy").write_bytes(DATA)
    assert InputFile(path).identity == InputFile(tmp_path / "hard").identity
    assert InputFile(path).identity != InputFile(tmp_path / "copy").identity


def test_read_small_file(path):
    assert read_small_file(path, len(DATA)) == DATA
    with pytest.raises(MalformedFileError, match="10240 bytes, and such a file has at most 10239"):
        read_small_file(path, len(DATA) - 1)


class TestWhatIsOpened:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(MissingFileError, match="no such file") as caught:
            InputFile(tmp_path / "none").read_bytes(0, 1)
        assert isinstance(caught.value, FileNotFoundError)

    def test_a_file_in_a_file(self, path):
        with pytest.raises(MissingFileError):
            InputFile(path / "x").read_bytes(0, 1)

    def test_a_folder(self, tmp_path, refused):
        refused(InputFile(tmp_path)._open, says="folder" if os.name == "posix" else "cannot be opened")

    @needs_links
    @pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
    def test_a_device(self, device, refused):
        refused(InputFile(device)._open, says="a device or a pipe, not a regular file")

    @needs_links
    def test_a_pipe_without_a_writer_does_not_block(self, tmp_path, refused):
        os.mkfifo(tmp_path / "pipe")
        refused(InputFile(tmp_path / "pipe")._open, says="a device or a pipe, not a regular file")

    @needs_links
    @pytest.mark.usefixtures("path")
    def test_a_link_to_a_regular_file(self, tmp_path):
        link = tmp_path / "model.safetensors"
        link.symlink_to("data.bin")
        assert InputFile(link).read_bytes(0, 3) == DATA[:3]

    @needs_links
    def test_links_that_lead_nowhere(self, tmp_path, refused):
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "device").symlink_to("pipe")
        (tmp_path / "dangling").symlink_to("none")
        refused(InputFile(tmp_path / "a")._open, says="form a loop")
        refused(InputFile(tmp_path / "device")._open, says="not a regular file")
        refused(InputFile(tmp_path / "dangling")._open, says="target is not there", kind=MissingFileError)

    @pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800"])
    def test_impossible_names(self, name, refused):
        refused(InputFile(name)._open, says=":")


class TestFileRows:
    @pytest.mark.parametrize("encoding", [ir.F32, ir.F16, ir.BF16, ir.F64])
    def test_reads_rows_as_they_are_stored(self, tmp_path, encoding):
        values = np.arange(60).reshape(12, 5).astype(encoding.dtype)
        path = tmp_path / "rows"
        path.write_bytes(b"head" + values.tobytes())
        rows = FileRows(InputFile(path), 4, 5 * encoding.dtype.itemsize, encoding, "w")
        copy = pickle.loads(pickle.dumps(rows))  # noqa: S301
        part = copy.read(3, 9)
        assert part.dtype == encoding.dtype
        assert part.shape == (6, 5)
        assert part.tobytes() == values[3:9].tobytes()
        assert rows.label == f"{path}: w"

    def test_raw_elements_are_read_as_bytes(self, path):
        path.write_bytes(bytes(range(20)))
        rows = FileRows(InputFile(path), 0, 5, ir.RawEncoding("i8", 1, 1), "ids")
        assert rows.read(1, 3).tolist() == [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]

    def test_the_end_is_checked_before_memory_is_taken(self, path, refused):
        rows = FileRows(InputFile(path), 0, 4096, ir.F32, "w")
        refused(rows.read, 0, 1 << 40, says="truncated")

    def test_on_a_big_endian_machine(self, tmp_path, monkeypatch):
        # What such a machine would see in two bytes of a bfloat16: their order reversed.
        monkeypatch.setattr(sys, "byteorder", "big")
        (tmp_path / "rows").write_bytes(np.array([1.5], ir.BF16.dtype).tobytes()[::-1])
        assert FileRows(InputFile(tmp_path / "rows"), 0, 2, ir.BF16, "w").read(0, 1)[0, 0] == 1.5
