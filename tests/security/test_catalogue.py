"""The catalogue of hostile files, each on the whole way to a GGUF: refused soon, and nothing is left behind.

The identifiers are those of fixtures/make_hostile.py; the other files here have many variants of each.
"""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from typing import Any

import pytest

import phiconv
from make_hostile import CATALOGUE, make_hostile
from phiconv.errors import (
    ConfigError,
    InputError,
    MalformedFileError,
    MissingFileError,
    UnsafePickleError,
    UnsupportedModelError,
    WeightError,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX file system")

SECONDS, MEMORY = 1.0, 100 << 20

# How many numbers each letter has: pickles, zip archives, safetensors, indexes, links, JSON, weights, GGUF.
NUMBERS = {"P": 19, "Z": 9, "S": 15, "I": 6, "L": 4, "J": 6, "N": 4, "G": 12}

Unsafe, Malformed, Unsupported = UnsafePickleError, MalformedFileError, UnsupportedModelError

# What refuses each, and a part of what is said; None for what is fine.
EXPECTED: dict[str, tuple[type[InputError], str] | None] = {
    "P1": (Unsafe, "it asks for os.system"),
    "P2": (Unsafe, "it asks for os.system"),
    "P3": (Unsafe, "it asks for builtins.getattr"),
    "P4": (Unsafe, "it uses NEWOBJ"),
    "P5": (Unsafe, "it uses EXT1"),
    "P6": (Unsafe, "it asks for os.system"),
    "P7": (Malformed, "bytes follow the end of the pickle"),
    "P8": (Unsafe, "with arguments that describe nothing"),
    "P9": (Malformed, "more than 200000 opcodes"),
    "P10": (Malformed, "takes 2147483647 bytes"),
    "P11": (Malformed, "a frame of 18446744073709551615 bytes"),
    "P12": (Malformed, "ends without a STOP"),
    "P13": (Unsupported, "a tar archive"),
    "P14": (Unsupported, "a TorchScript archive"),
    "P15": (Malformed, "neither little nor big"),
    "P16": (Malformed, "reaches element 4 of a storage that has 4"),
    "P17": (Unsafe, "with arguments that describe nothing"),
    "P18": (Malformed, "a storage of 16 bytes, which has 12"),
    "P19": (Malformed, "holds elements twice"),
    "Z1": (Unsupported, "is compressed"),
    "Z2": (Malformed, "has sizes that stand nowhere"),
    "Z3": (Malformed, "overlaps another entry"),
    "Z4": (Malformed, "is no name of an entry"),
    "Z5": (Malformed, "is there twice"),
    "Z6": (Unsupported, "is encrypted"),
    "Z7": (Malformed, "not a PyTorch checkpoint"),
    "Z8": (Malformed, "the CRC is"),
    "Z9": (Malformed, "without one data.pkl"),
    "S1": (Malformed, "it has 7 bytes"),
    "S2": (Malformed, "it is truncated"),
    "S3": (Malformed, "a header of 9223372036854775808 bytes"),
    "S4": (Malformed, "a header of 100000001 bytes"),
    "S5": (Malformed, "the header is no JSON object"),
    "S6": (Malformed, "the header is no JSON object"),
    "S7": (Malformed, "not valid UTF-8"),
    "S8": (Malformed, "the key is there twice"),
    "S9": (Malformed, "nested too deeply"),
    "S10": (Malformed, "NaN is not a JSON number"),
    "S11": (Malformed, "it leaves a gap before it"),
    "S12": (Malformed, "takes 36893488147419103232 bytes"),
    "S13": (Malformed, "F33 is not a dtype"),
    "S14": (Malformed, "expected an object of strings"),
    "S15": (Malformed, "more than 250000 values"),
    "I1": (Malformed, "is not the name of a file in the same folder"),
    "I2": (MissingFileError, "1 of 3 shards are not there"),
    "I3": (Malformed, "says that it is in b.safetensors"),
    "I4": (Malformed, "says that it is in no shard"),
    "I5": (Malformed, "says that the tensor is in this shard, and it is not"),
    "I6": (Malformed, "says that it is in a.safetensors"),
    "L1": (InputError, "a link out of its folder"),
    "L1 loop": (InputError, "form a loop"),
    "L2": None,
    "L3": None,
    "L4": (InputError, "a device or a pipe"),
    "L4 device": (InputError, "a link out of its folder"),
    "J1": (Malformed, "nested too deeply"),
    "J1 tokenizer": (Malformed, "nested too deeply"),
    "J2": (Malformed, "key hidden_size: the key is there twice"),
    "J3": (ConfigError, "key hidden_size: must be an integer"),
    "J3 negative": (ConfigError, "key num_hidden_layers: must be an integer"),
    "J3 true": (ConfigError, "key num_hidden_layers: must be an integer"),
    "J3 float": (ConfigError, "key intermediate_size: must be an integer"),
    "J3 huge": (Malformed, "this tensor is missing"),
    "J3 heads": (ConfigError, "key num_attention_heads: must be an integer"),
    "J3 vocabulary": (ConfigError, "key vocab_size: must be an integer"),
    "J4": (ConfigError, "has 7 entries"),
    "J4 nan": (Malformed, "NaN is not a JSON number"),
    "J5": (Malformed, "500000000 bytes, and such a file has at most"),
    "J5 merges": (ConfigError, "which is not in the vocabulary"),
    "J5 twice": (ConfigError, "the id 5 is there twice"),
    "J5 beyond": (ConfigError, "has no row in the embedding"),
    "J6": None,
    "N1": (WeightError, "is NaN or infinite at row 1, column 5"),
    "N1 signalling": (WeightError, "is NaN or infinite at row 1, column 5"),
    "N1 infinite": (WeightError, "is NaN or infinite at row 1, column 5"),
    "N2": None,
    "N3": (WeightError, "1 weights are too large for f16"),
    "N4": None,
    "G1": (Malformed, "not a GGUF file"),
    "G2": (Malformed, "a big-endian GGUF file"),
    "G3": (Malformed, "1152921504606846976 tensors are announced"),
    "G3 keys": (Malformed, "1152921504606846976 metadata keys are announced"),
    "G4": (Malformed, "1099511627776 more bytes are announced"),
    "G5": (Malformed, "8589934592 array items are announced"),
    "G5 nested": (Malformed, "nested more than 4 deep"),
    "G6": (Malformed, "tensor type 4294967292 is not known"),
    "G7": (Malformed, "the key k is there twice"),
    "G7 tensor": (Malformed, "the tensor w is there twice"),
    "G8": (Malformed, "0 is no alignment"),
    "G8 odd": (Malformed, "3 is no alignment"),
    "G8 large": (Malformed, "2147483648 is no alignment"),
    "G9": (Malformed, "ends at byte 4611686018427388096"),
    "G9 overlap": (Malformed, "inside the tensor before it"),
    "G9 unaligned": (Malformed, "offset 4 is not a multiple of 32"),
    "G10": (Malformed, "a dimension of shape [0, 32] is 0"),
    "G10 many": (Malformed, "5 dimensions"),
    "G10 overflow": (Malformed, "ends at byte 73786976294838206560"),
    "G11": (Malformed, "key split.no: 0, where 1 is expected"),
    "G12": (Malformed, "the tensor name has 10000000 bytes"),
    "G12 path": (Malformed, "tensor ../../x: ends at byte"),
}


def test_every_entry_is_there():
    wanted = {f"{letter}{n + 1}" for letter, count in NUMBERS.items() for n in range(count)}
    assert {identifier.partition(" ")[0] for identifier in CATALOGUE} == wanted
    assert CATALOGUE.keys() == EXPECTED.keys()


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def convert(source, destination, **options: Any) -> None:
    phiconv.convert(source, destination, quant="f16", jobs=1, **options)


@pytest.mark.parametrize("identifier", EXPECTED)
def test_entry(identifier, tmp_path, monkeypatch):
    source = make_hostile(tmp_path / "source", identifier)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    before = files(tmp_path)
    destination = tmp_path / "out" / "x.gguf"
    if EXPECTED[identifier] is None:
        convert(source, destination)
        assert phiconv.open_model(destination).architecture == "phi3"
        return
    kind, says = EXPECTED[identifier]
    start = time.process_time()  # the machine may be busy with other things
    with pytest.raises(kind) as caught:
        convert(source, destination)
    assert time.process_time() - start < SECONDS
    message = str(caught.value)
    assert type(caught.value) is kind
    assert says in message
    assert message.isprintable()
    assert files(tmp_path) == before
    tracemalloc.start()
    try:
        with pytest.raises(kind):
            convert(source, destination)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def test_a_chat_template_is_never_rendered(tmp_path):
    source = make_hostile(tmp_path / "source", "J6")
    convert(source, tmp_path / "x.gguf")
    model = phiconv.open_model(tmp_path / "x.gguf")
    assert "__subclasses__" in model.tokenizer.chat_templates["default"]


# Says at its end how much memory it has had, in kB; 0 but on Linux. (`resource` counts the parent's, too.)
PROGRAM = """
import atexit, pathlib, re
from phiconv.cli import main
status = pathlib.Path("/proc/self/status")
peak = lambda: re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1] if status.exists() else 0
atexit.register(lambda: print(peak()))
main()
"""


@pytest.mark.parametrize("identifier", ["P1", "L4 device", "N1", "G12"])
def test_on_the_command_line(identifier, tmp_path):
    """One line, the documented exit status, no traceback, no output, and little memory in all."""
    source = make_hostile(tmp_path / "source", identifier)
    (tmp_path / "out").mkdir()
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(source),
        str(tmp_path / "out" / "x.gguf"),
        "--f16",
        "--quiet",
    ]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 1024 * int(done.stdout) < MEMORY
    (line,) = done.stderr.splitlines()
    assert EXPECTED[identifier][1] in line
    assert files(tmp_path / "out") == set()
