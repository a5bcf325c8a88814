"""Adapters of strangers: a valid one is changed at random, and is merged or refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time

import pytest
from hypothesis import HealthCheck, event, given, settings

import phiconv
from adapters import QKV, low_rank, write_adapter
from mutations import changes, json_changes, mutate, mutate_json
from phiconv.errors import PhiconvError

EXAMPLES = int(os.environ.get("PHICONV_FUZZ_EXAMPLES", "10"))
SECONDS = 2.0
LONG = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PIECES = [
    b'"dtype":"F16"',
    b'"shape":[1]',
    b"lora_A",
    b"lora_B.weight",
    b"base_model.model.",
    b"NaN",
    b"[[[[",
]


@pytest.fixture(scope="module")
def merges(tmp_path_factory, model_folder):
    """Merges an adapter in which a file is changed; says what became of it."""
    root = tmp_path_factory.mktemp("fuzz")
    tensors = low_rank(QKV, 192, 64) | low_rank("model.layers.1.mlp.down_proj", 64, 96)
    good = write_adapter(root / "good", tensors, alpha_pattern={"qkv_proj": 3}, rank_pattern={"o_proj": 7})
    model = phiconv.open_model(model_folder("phi3"))

    def run(name, change):
        folder = root / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        (folder / name).write_bytes(change((good / name).read_bytes()))
        start = time.process_time()
        output = root / "out.gguf"
        try:
            phiconv.convert(model, output, quant="f16", lora=[folder], force=True, jobs=1, receipt=False)
            result, message = "merged", ""
        except PhiconvError as error:
            result, message = type(error).__name__, str(error)
        assert message.isprintable()
        assert time.process_time() - start < SECONDS
        assert not [path for path in root.iterdir() if path not in (folder, good, output)]
        return result

    return run


def header_changed(data, wanted):
    """A file of safetensors with a changed header, the bytes of its tensors as they were."""
    length = struct.unpack("<Q", data[:8])[0]
    text = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), wanted)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def test_the_adapter_is_good(merges):
    assert merges(WEIGHTS, bytes) == "merged"


@given(wanted=json_changes())
@LONG
def test_changed_configuration(merges, wanted):
    event(merges(CONFIG, lambda data: json.dumps(mutate_json(json.loads(data), wanted)).encode()))


@given(wanted=json_changes())
@LONG
def test_changed_header(merges, wanted):
    event(merges(WEIGHTS, lambda data: header_changed(data, wanted)))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@given(wanted=changes(content=PIECES))
@LONG
def test_changed_bytes(merges, name, wanted):
    event(merges(name, lambda data: mutate(data, wanted)))
