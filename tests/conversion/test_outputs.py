"""Files that appear when they are complete: what checks them sees all of them, and can refuse."""

from __future__ import annotations

import pytest

from phiconv.conversion.outputs import partial_files
from phiconv.errors import OutputError
from phiconv_formats.shared.output import OutputFile


@pytest.fixture
def seen():
    return []


@pytest.fixture
def refuse(seen):
    def check(path):
        seen.append(path.read_bytes())
        raise OutputError("not what was laid out", path="b")

    return check


def test_a_check_sees_the_complete_file_before_it_has_its_name(tmp_path):
    seen = []

    def check(path):
        seen.append(
            (path.read_bytes(), path.name == "a", [p.name for p in tmp_path.iterdir()] == [path.name])
        )

    with partial_files(tmp_path, [OutputFile("a", 6, ((0, b"head"),), check)], force=False) as made:
        made["a"].write(4, b"56")
    assert seen == [(b"head56", False, True)]
    assert (tmp_path / "a").read_bytes() == b"head56"


@pytest.mark.parametrize("own_folder", [False, True])
def test_a_refused_file_takes_the_others_with_it(own_folder, refuse, seen, tmp_path):
    files = [OutputFile("a", 1, ((0, b"a"),)), OutputFile("b", 1, ((0, b"b"),), refuse)]
    with (
        pytest.raises(OutputError, match=r"^b: not what was laid out$"),
        partial_files(tmp_path / "new", files, force=False, own_folder=own_folder),
    ):
        pass
    assert seen == [b"b"]
    assert list(tmp_path.iterdir()) == []


def test_older_files_survive_a_refusal(refuse, tmp_path):
    for name in ("b", "b-stale"):
        (tmp_path / name).write_text("older")
    with (
        pytest.raises(OutputError),
        partial_files(tmp_path, [OutputFile("b", 1, (), refuse)], force=True, own_folder=True, stale=("b*",)),
    ):
        pass
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"b": "older", "b-stale": "older"}


def test_nothing_is_checked_after_an_error(refuse, seen, tmp_path):
    with (
        pytest.raises(ValueError, match="in the middle"),
        partial_files(tmp_path, [OutputFile("b", 1, (), refuse)], force=False),
    ):
        raise ValueError("in the middle")
    assert seen == []
