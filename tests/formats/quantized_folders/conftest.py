"""Folders that real tools have quantized."""

from __future__ import annotations

import pytest

from quantized_folder import FOLDERS, complete


@pytest.fixture
def folder(tmp_path, make_base):
    """``folder(name, arrays=..., **settings)``: a folder of fixtures/, or with something changed."""

    def make(name, **changes):
        return complete(name, make_base(tmp_path / name, FOLDERS[name]["kind"]), **changes)

    return make
