"""Hostile quantized folders: arrays that lie, settings that contradict them, and numbers that are none."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pytest

import phiconv
from phiconv.errors import ConfigError, InputError, MalformedFileError, UnsupportedModelError, WeightError
from quantized_folder import FOLDERS, Stored, array, arrays_of, complete

BASE = "model.layers.0.mlp.down_proj"
Malformed, Unsupported = MalformedFileError, UnsupportedModelError


class Variant(NamedTuple):
    """A folder with something changed.

    Attributes:
        says: A part of what refuses it.
        kind: The class of the error.
        changes: Arrays of the last matrix that are stored otherwise, by name; None for what is missing. A
            function is given what is stored.
        settings: What ``quantization_config`` says otherwise.
    """

    says: str
    kind: type[InputError] = Malformed
    changes: dict = {}  # noqa: RUF012 - never changed
    settings: dict = {}  # noqa: RUF012 - never changed


def reshaped(*shape):
    """The same bytes under another shape."""
    return lambda stored: Stored(stored.dtype, shape, stored.data)


def cut(rows):
    """Fewer rows."""
    return lambda stored: array(stored.dtype, stored.values[:rows])


def filled(value, *place):
    """One number changed."""

    def change(stored):
        values = stored.values.copy()
        values[place or ...] = value
        return array(stored.dtype, values)

    return change


def empty(dtype, *shape):
    return lambda _: Stored(dtype, shape, b"")


def retyped(dtype):
    return lambda stored: array(dtype, stored.values)


def state(**changes):
    """A quant_state that says something else."""

    def change(stored):
        text = json.dumps(json.loads(stored.data) | changes).encode()
        return array("U8", np.frombuffer(text, np.uint8))

    return change


def text(data):
    return lambda _: array("U8", np.frombuffer(data, np.uint8))


NAN = float("nan")
TWO = lambda _: array("F32", np.ones((1, 2)))  # noqa: E731 - a change as the others
GPTQ = {"quant_method": "gptq", "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "checkpoint_format": "gemm", "format": "gemm"}
STATE = "weight.quant_state.bitsandbytes__nf4"

VARIANTS = {
    "gptq-4-sym-g32": {
        "qweight cut": Variant("g_idx: has shape [128]", changes={"qweight": cut(8)}),
        "qweight turned": Variant("no zero points of 4 bits", changes={"qweight": reshaped(128, 16)}),
        "qweight flat": Variant("no matrix's", changes={"qweight": reshaped(2048)}),
        "qweight empty": Variant("no matrix's", changes={"qweight": empty("I32", 0, 128)}),
        "qweight without rows": Variant("no matrix's", changes={"qweight": empty("I32", 16, 0)}),
        "qweight of bytes": Variant("has elements of i64", changes={"qweight": retyped("I64")}),
        "scales cut": Variant("qzeros: has shape [4, 16]", changes={"scales": cut(3)}),
        "scales of one": Variant("no matrix's", changes={"scales": empty("F16", 0, 128)}),
        "scales missing": Variant("scales: this array is missing", changes={"scales": None}),
        "scales of integers": Variant("f16 or bf16 or f32 is expected", changes={"scales": retyped("I32")}),
        "scales turned": Variant("scales: has shape", changes={"scales": reshaped(128, 4)}),
        "scale not a number": Variant("NaN or infinite", WeightError, {"scales": filled(NAN, 1, 2)}),
        "scale infinite": Variant("NaN or infinite", WeightError, {"scales": filled(np.inf, 3, 127)}),
        "zeros missing": Variant("qzeros: this array is missing", changes={"qzeros": None}),
        "zeros turned": Variant("no zero points", changes={"qzeros": reshaped(16, 4)}),
        "zeros of their own": Variant("symmetrically", changes={"qzeros": filled(0x77777778, 2, 3)}),
        "order too large": Variant("g_idx: names group 4, and there are 4", changes={"g_idx": filled(4, 7)}),
        "order negative": Variant("g_idx: names group -1", changes={"g_idx": filled(-1, 0)}),
        "order cut": Variant("g_idx: has shape [127]", changes={"g_idx": cut(127)}),
        "order of floats": Variant("i32 or i64 is expected", changes={"g_idx": retyped("F32")}),
        "bits": Variant("no zero points of 8 bits", settings={"bits": 8}),
        "bits unknown": Variant("a number of bits that is 5", ConfigError, settings={"bits": 5}),
        "bits true": Variant("bits", ConfigError, settings={"bits": True}),
        "bits as text": Variant("bits", ConfigError, settings={"bits": "4"}),
        "bits missing": Variant("bits: missing", ConfigError, settings={"bits": None}),
        "groups": Variant("has 4 groups, where 128 inputs", settings={"group_size": 64}),
        "one group": Variant("has 4 groups", settings={"group_size": -1}),
        "groups of nothing": Variant("group_size", ConfigError, settings={"group_size": 0}),
        "groups of -2": Variant("group_size", ConfigError, settings={"group_size": -2}),
        "sym as text": Variant("sym", ConfigError, settings={"sym": "yes"}),
        "version": Variant("has a zero point 7", settings={"checkpoint_format": "gptq_v2"}),
        "layout": Variant("the layout marlin", ConfigError, settings={"checkpoint_format": "marlin"}),
        "layout as list": Variant("the layout", ConfigError, settings={"checkpoint_format": ["gptq"]}),
        "planes": Variant("the layout gptq_p", ConfigError, settings={"checkpoint_format": "gptq_p"}),
        "marlin": Variant("Marlin", ConfigError, settings={"is_marlin_format": True}),
        "another method": Variant("has shape", settings=AWQ),
        "stored twice": Variant("stored twice, quantized and not", changes={"weight": empty("F32", 0)}),
        "unread method": Variant(
            "quantized already, by hqq", Unsupported, settings={"quant_method": "hqq"}
        ),
    },
    "gptq-4-order": {
        "order of nothing": Variant("names group 2147483647", changes={"g_idx": filled(2**31 - 1, 64)}),
        "scale not a number": Variant("NaN or infinite", WeightError, {"scales": filled(NAN, 0, 0)}),
    },
    "gptq-3-asym-g64": {
        "half a triple": Variant("do not fill", changes={"qweight": cut(11)}),
    },
    "awq-g32": {
        "qweight cut": Variant("scales: has shape [4, 128]", changes={"qweight": cut(64)}),
        "zeros cut": Variant("qzeros: has shape", changes={"qzeros": cut(1)}),
        "another method": Variant("no zero points", settings=GPTQ),
        "stored twice": Variant("stored twice, quantized and not", changes={"weight": empty("F32", 0)}),
        "bits": Variant("a number of bits that is 8", ConfigError, settings={"bits": 8}),
        "gemv": Variant("the layout", ConfigError, settings={"version": "gemv"}),
        "scale not a number": Variant("NaN or infinite", WeightError, {"scales": filled(NAN, 1, 1)}),
    },
    "bnb-nf4-double": {
        "state missing": Variant("has 0 arrays", changes={STATE: None}),
        "state is no JSON": Variant("JSON", changes={STATE: text(b"{")}),
        "state is a list": Variant("expected a JSON object", changes={STATE: text(b"[]")}),
        "state is deep": Variant("JSON", changes={STATE: text(b"[" * 900 + b"]" * 900)}),
        "state is large": Variant("far more", changes={STATE: text(b" " * ((1 << 20) + 1))}),
        "another kind": Variant("must be nf4", ConfigError, {STATE: state(quant_type="fp4")}),
        "shape turned": Variant("has shape [64, 256]", ConfigError, {STATE: state(shape=[64, 256])}),
        "shape of more": Variant("the two sizes of 16384", ConfigError, {STATE: state(shape=[128, 1 << 40])}),
        "shape negative": Variant("the two sizes", ConfigError, {STATE: state(shape=[-128, -128])}),
        "shape of truth": Variant("the two sizes", ConfigError, {STATE: state(shape=[True, 16384])}),
        "blocks of 48": Variant("blocks of 48", Unsupported, {STATE: state(blocksize=48)}),
        "blocks of 0": Variant("blocksize", ConfigError, {STATE: state(blocksize=0)}),
        "other blocks": Variant("weight.absmax: has shape", changes={STATE: state(blocksize=128)}),
        "nested blocks": Variant("nested_absmax: has shape", changes={STATE: state(nested_blocksize=64)}),
        "offset of text": Variant("nested_offset", ConfigError, {STATE: state(nested_offset="1")}),
        "offset large": Variant("nested_offset", ConfigError, {STATE: state(nested_offset=10**400)}),
        "absmax cut": Variant("weight.absmax: has shape", changes={"weight.absmax": cut(255)}),
        "absmax turned": Variant("weight.absmax", changes={"weight.absmax": reshaped(16, 16)}),
        "map of 15": Variant("quant_map: has shape", changes={"weight.quant_map": cut(15)}),
        "map of none": Variant("no number", changes={"weight.quant_map": filled(NAN, 3)}),
        "nested map": Variant("this array is missing", changes={"weight.nested_quant_map": None}),
        "nested scale": Variant("NaN or infinite", WeightError, {"weight.nested_absmax": filled(NAN, 0)}),
        "weight cut": Variant("shape: must be", ConfigError, {"weight": cut(100)}),
        "weight empty": Variant("", changes={"weight": empty("U8", 0, 1)}, kind=InputError),
    },
    "bnb-int8": {
        "scales cut": Variant("SCB: has shape", changes={"SCB": cut(127)}),
        "scale not a number": Variant("NaN or infinite", WeightError, {"SCB": filled(NAN, 9)}),
        "columns": Variant("weight_format", Unsupported, {"weight_format": filled(1)}),
        "unsigned": Variant("has elements of u8", changes={"weight": retyped("U8")}),
    },
    "fp8-128": {
        "scales turned": Variant("weight_scale_inv: has shape", changes={"weight_scale_inv": TWO}),
        "blocks": Variant("weight_scale_inv: has shape", settings={"weight_block_size": [64, 64]}),
        "block of text": Variant("weight_block_size", ConfigError, settings={"weight_block_size": "128"}),
        "block of 0": Variant("weight_block_size", ConfigError, settings={"weight_block_size": [0, 128]}),
        "scale not a number": Variant("NaN", WeightError, {"weight_scale_inv": filled(NAN, 0, 0)}),
        "code not a number": Variant("NaN", WeightError, {"weight": filled(127, 100, 3)}),
        "weights of floats": Variant("f8_e4m3 is expected", changes={"weight": retyped("F32")}),
    },
    "modelopt-nvfp4": {
        "another algorithm": Variant("does not mean", settings={"quant_algo": "FP8"}),
        "unread algorithm": Variant("quantization", ConfigError, settings={"quant_algo": "W4A8_AWQ"}),
        "no algorithm": Variant("quantization None", ConfigError, settings={"quant_algo": None}),
        "no second scale": Variant("does not mean", changes={"weight_scale_2": None}),
        "second scale": Variant("NaN or infinite", WeightError, {"weight_scale_2": filled(NAN)}),
        "two second scales": Variant(
            "is not one number", changes={"weight_scale_2": lambda _: array("F32", np.ones(2))}
        ),
        "scales cut": Variant("weight_scale: has shape", changes={"weight_scale": cut(64)}),
        "scale not a number": Variant("NaN or infinite", WeightError, {"weight_scale": filled(255, 1, 2)}),
    },
    "modelopt-w4a16-awq": {
        "factors cut": Variant("pre_quant_scale: has shape", changes={"pre_quant_scale": cut(64)}),
        "factor not a number": Variant("NaN or infinite", WeightError, {"pre_quant_scale": filled(NAN, 1)}),
        "scales": Variant("weight_scale: has shape", changes={"weight_scale": cut(64)}),
        "three groups": Variant(
            "3 groups of 128 inputs", changes={"weight_scale": lambda _: array("F32", np.ones((128, 3)))}
        ),
    },
    "modelopt-mxfp4": {
        "scale not a number": Variant("NaN or infinite", WeightError, {"weight_scale": filled(255, 1, 2)}),
    },
    "torchao-int4-asym": {
        "scales cut": Variant("_weight_scale: has shape", changes={"_weight_scale": cut(64)}),
        "zeros cut": Variant("_weight_zero_point: has shape", changes={"_weight_zero_point": cut(64)}),
        "code of 8 bits": Variant("more than 4 bits", changes={"_weight_qdata": filled(8, 1, 1)}),
        "zero of 8 bits": Variant("more than 4 bits", changes={"_weight_zero_point": filled(-9, 1, 1)}),
        "stored twice": Variant("is stored twice", changes={"weight": empty("F32", 0)}),
        "floats": Variant("is no IntxUnpacked", changes={"_weight_qdata": retyped("F8_E4M3")}),
    },
}  # fmt: skip

CASES = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


@pytest.fixture
def make(tmp_path, make_base):
    def build(name, variant):
        made, changed = arrays_of(name), {}
        for part, change in variant.changes.items():
            full = f"{BASE}.{part}"
            changed[full] = None if change is None else change(made.get(full))
        folder = make_base(tmp_path / "folder", FOLDERS[name]["kind"])
        return complete(name, folder, arrays=changed, **variant.settings)

    return build


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # as it is made
@pytest.mark.parametrize(("name", "which"), CASES)
def test_is_refused(name, which, make, refused, tmp_path):
    variant = VARIANTS[name][which]
    out = tmp_path / "out"
    out.mkdir()
    folder = make(name, variant)

    def convert():
        phiconv.convert(folder, out / "x.gguf", quant="f32", jobs=1)

    refused(convert, says=variant.says, kind=variant.kind)
    assert list(out.iterdir()) == []


def test_the_sources_are_good(make, tmp_path):
    for name in VARIANTS:
        assert phiconv.convert(make(name, Variant("")), tmp_path / f"{name}.gguf", quant="f32")
