"""The library, as somebody uses it from a notebook: what is printed, logged, checked and ended."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import fields, is_dataclass

import pytest

import phiconv
from paths import FIXTURES
from phiconv.brief import LONGEST, Brief, brief
from phiconv.errors import CancelledError, UsageError

TINY = FIXTURES / "tiny-phi4mini"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A conversion, and everything else that the library returns of it."""
    out = tmp_path_factory.mktemp("library") / "out.gguf"
    model = phiconv.open_model(TINY)
    choices = phiconv.Choices(tensor_types={"ffn_down": "Q6_K"}, output_tensor_type="Q8_0")
    result = phiconv.convert(model, out, quant="q4", choices=choices)
    return {
        "model": model,
        "choices": choices,
        "result": result,
        "plan": result.plan,
        "comparison": phiconv.compare(model, out),
        "evaluation": phiconv.evaluate(out, "The list of names. " * 40, reference=model, context=64),
        "examination": phiconv.examine(TINY),
        "verification": phiconv.verify(out),
    }


def reachable(value, seen):
    """Objects of ours, whatever holds them."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if is_dataclass(value):
        for field in fields(value):
            reachable(getattr(value, field.name), seen)
    elif isinstance(value, dict):
        for each in [*value.values()][:3]:
            reachable(each, seen)
    elif isinstance(value, (tuple, list)):
        for each in value[:3]:
            reachable(each, seen)


def test_everything_prints_on_one_short_line(made):
    seen = {}
    for value in made.values():
        reachable(value, seen)
    ours = [v for v in seen.values() if type(v).__module__.startswith("phiconv") and is_dataclass(v)]
    assert {type(v).__name__ for v in ours} >= {"Model", "Tensor", "Plan", "Tokenizer", "Package", "Receipt"}
    for value in ours:
        assert len(repr(value)) < 300, type(value)
        assert repr(value).isprintable()


def test_what_matters_is_said(made):
    assert re.match(
        r"Model\(path='.*tiny-phi4mini', format='safetensors', architecture='phi3'", repr(made["model"])
    )
    assert "recipe='Q4_K_M'" in repr(made["plan"])
    assert "ffn_down" in repr(made["choices"])
    assert "outcome='verified'" in repr(made["verification"])
    assert repr(phiconv.Choices()) == "Choices()"


def test_a_long_object_is_cut_between_its_values():
    text = repr(phiconv.Choices(**dict.fromkeys(("output_tensor_type", "token_embedding_type"), "q" * 50)))
    assert text == f"Choices(output_tensor_type='{'q' * 50}', token_embedding_type='{'q' * 50}')"
    assert brief("x" * 500) == repr("..." + "x" * 57)
    many = phiconv.TensorPlan(*["n" * 900] * 6)
    assert len(repr(many)) <= LONGEST
    assert repr(many).endswith("...)")


def test_notebooks_show_tables_and_names_are_text(made, tmp_path):
    assert "<td>q6_k</td>" in made["plan"]._repr_html_().lower()
    assert made["comparison"].tensors[0].name in made["comparison"]._repr_html_()
    hostile = phiconv.Finding("what", "<script>alert(1)</script>")
    assert "<script" not in hostile._repr_html_()
    assert all(isinstance(value, Brief) for value in made.values())


def test_types_are_written_in_several_ways():
    compiled = re.compile("ffn_down")
    pairs = [{"ffn_down": "Q6_K"}, [("ffn_down", "Q6_K")], ((compiled, "Q6_K"),), iter([(compiled, "Q6_K")])]
    assert {phiconv.Choices(tensor_types=each).overrides for each in pairs} == {((compiled, "Q6_K"),)}


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"tensor_types": {"(": "Q6_K"}}, "--tensor-type (=Q6_K"),
        ({"tensor_types": ["ffn_down"]}, "no pair of a pattern and a type"),
        ({"effort": "bets"}, "--effort bets: no such effort; did you mean best?"),
        ({"attention": 3}, "--attention 3: no such attention; one of gqa, standard"),
        ({"ratio": 1.5}, "no ratio 1.5; from 0 to 1"),
        ({"context": 0}, "no context 0; at least 1"),
        ({"target_size": True}, "no target size True"),
        ({"bits_per_weight": float("nan")}, "no bits per weight nan"),
        ({"bits_per_weight": 4.0, "target_size": 10**6}, "both say how large"),
    ],
)
def test_choices_are_checked_when_they_are_made(choices, says):
    with pytest.raises(UsageError) as caught:
        phiconv.Choices(**choices)
    assert says in str(caught.value)


def test_a_plan_is_carried_out(tmp_path, made):
    plan = phiconv.plan(TINY, tmp_path / "out.gguf", quant="q4", choices=made["choices"])
    assert plan.notes == plan.package.notes
    result = phiconv.convert(plan=plan)
    assert result.plan is plan
    assert result.files[0].read_bytes() == made["result"].files[0].read_bytes()
    with pytest.raises(UsageError, match="the plan says already what quant says"):
        phiconv.convert(plan=plan, quant="q8", force=True)
    with pytest.raises(UsageError, match="the plan says already what source says"):
        phiconv.convert(TINY, plan=plan)
    with pytest.raises(UsageError, match="a source and a destination, or a plan"):
        phiconv.convert(TINY)


def test_a_plan_for_the_best_codes_is_carried_out(tmp_path):
    """What is measured first goes into the plan."""
    plan = phiconv.plan(TINY, tmp_path / "a.gguf", quant="Q4_0", choices=phiconv.Choices(effort="best"))
    made = phiconv.convert(plan=plan, calibration_tokens=1024)
    assert made.plan.calibration is not None


def test_cancelling_leaves_nothing(tmp_path):
    cancel, told = threading.Event(), []

    def progress(done, total, name):
        told.append(done)
        cancel.set()

    with pytest.raises(CancelledError):
        phiconv.convert(TINY, tmp_path / "out.gguf", quant="q8", progress=progress, cancel=cancel)
    assert len(told) == 1
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(CancelledError):
        phiconv.compare(TINY, TINY, cancel=cancel)
    with pytest.raises(CancelledError):
        phiconv.evaluate(TINY, "The list of names. " * 40, context=64, cancel=cancel)
    with pytest.raises(CancelledError):
        phiconv.calibrate(TINY, "The list of names. " * 40, tmp_path / "i.gguf", context=64, cancel=cancel)
    assert [*tmp_path.iterdir()] == []


def test_cancelling_a_verification(made):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        phiconv.verify(made["result"].files[0], source=TINY, cancel=cancel)


@pytest.mark.parametrize("target", ["gguf", "onnx", "mlx", "openvino"])
def test_only_our_logger_speaks(tmp_path, target, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        result = phiconv.convert(
            TINY, tmp_path / ("o.gguf" if target == "gguf" else "o"), to=target, quant="q8"
        )
    assert {record.name for record in caplog.records} == {"phiconv"}
    messages = [record.getMessage() for record in caplog.records]
    assert [*result.notes] == messages[:-1]
    assert f"{result.size} bytes" in messages[-1]
    assert capfd.readouterr() == ("", "")


def test_text_to_ids_and_back():
    model = phiconv.open_model(TINY)
    ids = phiconv.encode(model, "The list<|end|>")
    assert phiconv.decode(model, ids) == "The list<|end|>"
    assert phiconv.decode(TINY, ids, skip_special=True) == "The list"
