"""Folders that real tools have made: what is read is what the tools themselves give back, bit by bit."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest

import phiconv
from phiconv.ir import Blocks
from phiconv.quantizers import decode
from quantized_folder import FOLDERS


def weights_of(tensor, step):
    rows = [tensor.read(at, min(at + step, tensor.rows)) for at in range(0, tensor.rows, step)]
    return np.concatenate([decode(row, tensor.columns) for row in rows])


@pytest.mark.parametrize("name", FOLDERS)
def test_every_weight_is_what_the_tool_gives(name, folder):
    model = phiconv.open_model(folder(name))
    named = name.partition("-")[0]  # GPTQModel's quant_method is gptq in AWQ's layout, too
    assert model.format == (named if named in {"gptq", "awq"} else "safetensors")
    for full, expected in FOLDERS[name]["weights"].items():
        weights = weights_of(model.stored[full], 7) + np.float32(0)  # -0 counts as 0
        assert hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest() == expected, full


@pytest.mark.parametrize("name", FOLDERS)
def test_tensors_go_to_other_processes(name, folder):
    model = phiconv.open_model(folder(name))
    for full in FOLDERS[name]["weights"]:
        tensor = model.stored[full]
        copy = pickle.loads(pickle.dumps(tensor))  # noqa: S301 - of our own
        assert copy.encoding == tensor.encoding
        assert np.array_equal(weights_of(copy, 9), weights_of(tensor, 9))


@pytest.mark.parametrize("name", FOLDERS)
def test_rows_are_the_same_however_they_are_cut(name, folder):
    model = phiconv.open_model(folder(name))
    for full in FOLDERS[name]["weights"]:
        tensor = model.stored[full]
        whole = weights_of(tensor, tensor.rows)
        for step in (1, 3, 64):
            assert np.array_equal(weights_of(tensor, step), whole)
        empty = tensor.read(5, 5)
        assert len(empty) == 0
        assert isinstance(empty, Blocks) == (tensor.encoding.block_size > 1)
