"""The LiteRT writer: what it lays out, and what it refuses; no runtime is needed."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import phiconv
from paths import FIXTURES
from phiconv.errors import PhiconvError
from phiconv.recipes import override
from phiconv_formats.litert.attention import swapping
from phiconv_formats.litert.container import HEADER, LLM_METADATA, MODEL, TOKENIZER, stored_zlib
from phiconv_formats.litert.container_reader import read_sections
from phiconv_formats.litert.flatbuffer import Blank, Number, Table, Tables, Text, Vector, finish
from phiconv_formats.litert.flatbuffer_reader import FlatBuffer
from phiconv_formats.litert.inputs import Step
from phiconv_formats.litert.rotary import rotary_tables
from phiconv_formats.shared.files import InputFile
from phiconv_formats.tokenizers.ends import stop_ids


def plan(source, quant, end="litertlm", **options):
    return phiconv.plan(source, f"x.{end}", quant=quant, choices=phiconv.Choices(**options))


def types(made):
    return {t.name: t.encoding.name for t in made.tensors}


# ---------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("end", ["litertlm", "tflite"])
@pytest.mark.parametrize("quant", ["wi8", "wi4b32", "f16"])
def test_plan_is_exact_and_bytes_are_the_same_again(tmp_path, quant, end):
    made = phiconv.plan(FIXTURES / "tiny-phi4mini", tmp_path / f"x.{end}", quant=quant)
    found = []
    for jobs in (1, 3):
        path = tmp_path / f"{jobs}.{end}"
        result = phiconv.convert(FIXTURES / "tiny-phi4mini", path, quant=quant, jobs=jobs)
        assert [p.name for p in result.files] == [path.name]
        assert path.stat().st_size == made.size
        found.append(path.read_bytes())
    assert found[0] == found[1]


def test_sections_stand_apart_and_begin_where_they_should(tmp_path):
    phiconv.convert(FIXTURES / "tiny-phi3", tmp_path / "x.litertlm", quant="wi8")
    sections = read_sections(InputFile(tmp_path / "x.litertlm"))
    assert [section.kind for section in sections] == [LLM_METADATA, TOKENIZER, MODEL]
    assert all(section.start % 16384 == 0 for section in sections)
    assert all(a.stop <= b.start for a, b in pairwise(sections))
    assert sections[-1].stop == (tmp_path / "x.litertlm").stat().st_size
    data = (tmp_path / "x.litertlm").read_bytes()
    assert data.startswith(b"LITERTLM")
    end = int.from_bytes(data[HEADER - 8 : HEADER], "little")
    assert not any(data[end : sections[0].start])
    packed = data[sections[1].start : sections[1].stop]
    assert zlib.decompress(packed[8:]) == (FIXTURES / "tiny-phi3/tokenizer.json").read_bytes()


def test_weights_do_not_overlap_and_nothing_else_does(tmp_path):
    """Places of streams and chunks, in every encoding."""
    for quant in ("wi8", "wi4", "wi4b64", "f32"):
        package = plan(FIXTURES / "tiny-phi3", quant).package
        (file,) = package.files
        ranges = [(offset, offset + len(data)) for offset, data in file.chunks]
        inside = []
        for stream in package.streams:
            for segment in stream.segments:
                stop = segment.offset + segment.row_bytes * stream.tensor.rows
                within = any(a <= segment.offset and stop <= b for a, b in ranges)
                (inside if within else ranges).append((segment.offset, stop))
        ranges.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(ranges))
        assert ranges[-1][1] == file.size
        inside.sort()  # scales of rows are in the FlatBuffer
        assert all(a[1] <= b[0] for a, b in pairwise(inside))
        assert bool(inside) is (quant != "f32")


def test_a_model_without_a_tokenizer_json_gets_one(tmp_path):
    shutil.copytree(FIXTURES / "tiny-phi3", tmp_path / "s")
    (tmp_path / "s" / "tokenizer.json").unlink()
    phiconv.convert(tmp_path / "s", tmp_path / "x.litertlm", quant="wi8")
    tokens = phiconv.open_model(tmp_path / "x.litertlm").tokenizer.tokens
    assert tokens == phiconv.open_model(tmp_path / "s").tokenizer.tokens


@given(data=st.binary(max_size=300) | st.integers(65530, 65540).map(bytes))
@settings(max_examples=50)
def test_a_stream_that_compresses_nothing_is_zlib(data):
    stored = stored_zlib(data)
    assert int.from_bytes(stored[:8], "little") == len(data)
    assert zlib.decompress(stored[8:]) == data


# ------------------------------------------------------------------------------------------- FlatBuffers

numbers = st.tuples(st.sampled_from("bBHiIQ"), st.integers(0, 100)).map(lambda pair: Number(*pair))
fields = st.recursive(
    st.dictionaries(st.integers(0, 9), numbers | st.text(max_size=9).map(Text), max_size=6),
    lambda inner: st.dictionaries(
        st.integers(0, 9),
        inner.map(Table) | st.lists(inner.map(Table), max_size=4).map(Tables) | numbers,
        max_size=5,
    ),
    max_leaves=12,
)


def check(table, view):
    """Whether what is read is what was written."""
    for slot, field in table.fields.items():
        if isinstance(field, Number):
            assert view.number(slot, field.kind, -1) == field.value
        elif isinstance(field, Text):
            assert view.text(slot) == field.value
        elif isinstance(field, Table):
            check(field, view.table(slot))
        else:
            read = list(view.tables(slot))
            assert len(read) == len(field.items)
            for item, inner in zip(field.items, read, strict=True):
                check(item, inner)


@given(fields=fields)
@settings(max_examples=80)
def test_what_is_written_is_read(tmp_path_factory, fields):
    root = Table(fields)
    path = tmp_path_factory.mktemp("f") / "f"
    path.write_bytes(finish(root, b"TEST").data)
    with InputFile(path) as file:
        check(root, FlatBuffer(file, 0, file.size, "test").root(b"TEST"))


def test_shared_parts_are_written_once_and_blanks_are_filled():
    vector = Vector(np.arange(50, dtype=np.int64), shared=True)
    table = Table({0: vector, 1: Vector(np.ones(50, np.float32))}, shared=True)
    blanks = [Blank() for _ in range(3)]
    made = finish(Table({0: Tables([Table({0: table, 1: vector, 2: blank}) for blank in blanks])}))
    assert bytes(made.data).count(vector.values.tobytes()) == 1
    assert bytes(made.data).count(np.ones(50, np.float32).tobytes()) == 1
    assert made.places[vector] % 8 == 0
    for value, blank in enumerate(blanks, start=0x0102030405060708):
        assert made.places[blank] % 8 == 0
        made.fill(blank, value)
        assert bytes(made.data).count(value.to_bytes(8, "little")) == 1


# ---------------------------------------------------------------------------------------------- the graph


def test_signatures():
    assert [step.name for step in Step.dynamic()] == ["decode", "prefill"]
    lengths = (1024, 256, 64, 8)
    assert [s.name for s in Step.static(300, lengths)] == ["decode", "prefill_256", "prefill_64", "prefill_8"]
    assert [s.length for s in Step.static(5, lengths)] == [1, 5]


def test_halves_are_swapped():
    x = np.arange(10.0, dtype=np.float32)
    assert (x @ swapping(10, 6).T).tolist() == [-3, -4, -5, 0, 1, 2, 0, 0, 0, 0]


def test_longrope_has_one_set_of_factors(model_folder):
    rope = phiconv.open_model(model_folder("phi4mini")).hyperparameters.rope
    for context, long in ((512, False), (513, True)):
        cos, sin = rotary_tables(rope, 32, context)
        angles = np.float32(7) * np.array(rope.inverse_frequencies(long=long), np.float32)
        half = rope.dimensions // 2
        for table, function, rest in ((cos, np.cos, 1), (sin, np.sin, 0)):
            assert table.shape == (context, 32 - half)
            assert np.allclose(table[7, :half], function(angles) * rope.mscale(long=long), atol=1e-7)
            assert (table[:, half:] == rest).all()
        notes = plan(model_folder("phi4mini"), "f32", context=context).package.notes
        assert any(("long factors" if long else "short factors") in note for note in notes)


# ------------------------------------------------------------------------------------------------ recipes


def test_the_two_ends_have_eight_bits(model_folder):
    folder = model_folder("phi3")
    for options, ends in (({}, "int8"), ({"all_layers": True}, "int4"), ({"match_runtime": True}, "int4")):
        found = types(plan(folder, "wi4b32", **options))
        assert all(ends in v for n, v in found.items() if "embed" in n or "lm_head" in n)
        assert {v for n, v in found.items() if "proj" in n} == {"litert_int4_b32"}
        assert {v for n, v in found.items() if "norm" in n} == {"f32"}


def test_rows_that_do_not_divide(make_model, tmp_path):
    folder = make_model(tmp_path / "s", "phi3", hidden_size=96, intermediate_size=80, num_attention_heads=3,
                        num_key_value_heads=3)  # fmt: skip
    made = plan(folder, "wi4b32")
    assert types(made)["model.layers.0.mlp.down_proj.weight"] == "litert_int8_g80"
    assert any("not all rows divide" in note for note in made.package.notes)


def test_a_gpu_looks_no_floats_up(model_folder):
    for kind in ("phi3", "phi4mini"):
        found = types(plan(model_folder(kind), "f16", target="gpu"))
        assert found["model.embed_tokens.weight"].startswith("litert_int8")
    assert found["model.layers.0.mlp.down_proj.weight"] == "f16"


@pytest.mark.parametrize(
    ("quant", "options", "says"),
    [
        ("wi8", {"all_layers": True}, "--all-layers"),
        ("f16", {"all_layers": True}, "--all-layers"),
        ("wi4", {"pure": True}, "--pure means nothing for litert"),
        ("wi4", {"target": "cuda"}, "no target 'cuda' of litert"),
        ("wi4", {"tensor_types": (override("lm_head=Q4_K"),)}, "no tensor can be turned into 'Q4_K'"),
        ("int5", {}, "no quantization"),
        ("wi4", {"short_context": True}, "--short-context"),
        ("wi8", {"context": 1 << 30}, "for 4096 positions at most"),
        ("wi8", {"layout": "genai"}, "--layout means nothing for litert"),
    ],
)
def test_what_cannot_be_is_refused_before_a_weight_is_read(quant, options, says):
    with pytest.raises(PhiconvError, match=says):
        plan(FIXTURES / "tiny-phi3", quant, **options)


def test_mixtures_are_refused_by_name(model_folder):
    with pytest.raises(phiconv.UnsupportedModelError, match="no operation for a mixture of experts"):
        plan(model_folder("phimoe"), "wi8")


def test_a_context_is_litert_s(model_folder):
    with pytest.raises(phiconv.UsageError, match="--context means nothing"):
        phiconv.plan(model_folder("phi3"), "x.gguf", choices=phiconv.Choices(context=100))


def test_it_is_not_split():
    with pytest.raises(phiconv.UsageError, match="--split-max-size"):
        phiconv.plan(FIXTURES / "tiny-phi3", "x.litertlm", quant="wi8", split_max_size=10**6)


def test_ends_of_texts_are_found_in_the_vocabulary(tmp_path):
    """Where no file names them: without any, the runtime opens no session."""
    shutil.copytree(FIXTURES / "tiny-phi4mini", tmp_path / "s")
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        path = tmp_path / "s" / name
        kept = {k: v for k, v in json.loads(path.read_text()).items() if "eos" not in k}
        path.write_text(json.dumps(kept))
    tokenizer = phiconv.open_model(tmp_path / "s").tokenizer
    assert {tokenizer.tokens[i] for i in stop_ids(tokenizer)} == {"<|end|>", "<|endoftext|>"}
    bare = replace(tokenizer, tokens=(), added=(), special_ids={}, eos_ids=())
    model = replace(phiconv.open_model(tmp_path / "s"), tokenizer=bare)
    assert any("opens no session" in note for note in plan(model, "wi8").package.notes)
