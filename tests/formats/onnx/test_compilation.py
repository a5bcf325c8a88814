"""Compiling for Qualcomm's processors, as far as it goes without the compiler; see also tests/runtime."""

from __future__ import annotations

import json
import shutil
import sys

import onnx
import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import MalformedFileError, OutputError, UnsupportedModelError, UsageError
from phiconv_formats.onnx import compilation
from phiconv_formats.onnx.compilation import SOCS, compile_folder, find_soc


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qnn") / "m"
    choices = phiconv.Choices(target="qnn", context=128)
    phiconv.convert(FIXTURES / "tiny-phi4mini", folder, to="onnx", quant="q4", choices=choices)
    return folder


class Runtime:
    """Stands in for ONNX Runtime: its compiler writes a binary and a graph with one node."""

    class SessionOptions:
        def __init__(self):
            self.entries = {}

        def add_session_config_entry(self, key, value):
            self.entries[key] = value

        def add_provider_for_devices(self, _devices, options):
            self.options = options

    def __init__(self, operator="EPContext"):
        self.operator = operator
        self.seen = []

    def get_ep_devices(self):
        return []

    def InferenceSession(self, _path, options):  # noqa: N802 - as ONNX Runtime calls it
        self.seen.append((options.entries, options.options))
        if self.operator is None:
            raise RuntimeError("no\nway")
        node = onnx.helper.make_node(self.operator, ["x"], ["y"], domain="com.microsoft")
        values = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
        graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
        target = options.entries["ep.context_file_path"]
        onnx.save(onnx.helper.make_model(graph), target)
        return object()


@pytest.fixture
def runtime(monkeypatch):
    made = Runtime()
    monkeypatch.setattr(compilation, "_runtime", lambda: made)
    return made


@pytest.mark.parametrize("name", ["60", "SC8380XP", "sc8380xp", "X-Elite", "x_elite"])
def test_processors_have_names_and_numbers(name):
    assert find_soc(name) == 60
    assert SOCS[60] == "SC8380XP"


def test_an_unknown_processor_is_refused_with_those_that_there_are():
    with pytest.raises(UsageError, match="did you mean SC8380XP"):
        find_soc("SC8380")


def test_the_folder_is_whole(source, tmp_path, runtime):
    made = phiconv.compile_qnn(source, tmp_path / "c", soc="60")
    config = json.loads((tmp_path / "c" / "genai_config.json").read_text())
    (stages,) = config["model"]["decoder"]["pipeline"]
    assert {s["filename"] for s in stages.values()} <= set(made.sizes)
    assert stages["context"]["filename"] == "context_60.onnx"
    assert made.sizes == {p.name: p.stat().st_size for p in (tmp_path / "c").iterdir()}
    assert not {"context.onnx", "iterator.onnx", ".phiconv.json"} & set(made.sizes)
    first, second = (entries for entries, _ in runtime.seen)
    assert first["ep.share_ep_contexts"] == second["ep.stop_share_ep_contexts"] == "1"
    assert "ep.stop_share_ep_contexts" not in first


def test_the_ends_keep_their_weights_and_no_others(source, tmp_path, runtime):
    phiconv.compile_qnn(source, tmp_path / "c", soc="60")
    size = (tmp_path / "c" / "model.onnx.data").stat().st_size
    assert size < (source / "model.onnx.data").stat().st_size / 2
    for name in ("embeddings.onnx", "lm_head.onnx"):
        ours, theirs = (onnx.load(str(folder / name)) for folder in (tmp_path / "c", source))
        assert len(ours.graph.initializer) > 1
        for a, b in zip(ours.graph.initializer, theirs.graph.initializer, strict=True):
            assert onnx.numpy_helper.to_array(a).tobytes() == onnx.numpy_helper.to_array(b).tobytes()


def test_another_processor_is_written_into_the_settings(source, tmp_path, runtime):
    made = phiconv.compile_qnn(source, tmp_path / "c", soc="SM8850", share=False)
    config = json.loads((tmp_path / "c" / "genai_config.json").read_text())
    (options,) = config["model"]["decoder"]["pipeline"][0]["iterator"]["session_options"]["provider_options"]
    assert options["QNN"]["soc_model"] == "87" == str(made.soc)
    assert all("ep.share_ep_contexts" not in entries for entries, _ in runtime.seen)


def test_the_name_of_the_processor_is_behind_that_of_the_source(source, tmp_path, runtime):
    shutil.copytree(source, tmp_path / "m")
    assert phiconv.compile_qnn(tmp_path / "m", soc="60").folder == tmp_path / "m-SC8380XP"


@pytest.mark.parametrize(("operator", "says"), [(None, r"no\\nway"), ("Add", "nothing in it runs")])
def test_what_the_compiler_refuses_leaves_nothing(source, tmp_path, runtime, operator, says):
    runtime.operator = operator
    with pytest.raises(UnsupportedModelError, match="does not compile") as caught:
        phiconv.compile_qnn(source, tmp_path / "c", soc="60")
    assert says.replace("\\\\", "\\") in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_there_stays(source, tmp_path, runtime):
    with pytest.raises(OutputError, match="exists already"):
        phiconv.compile_qnn(source, tmp_path, soc="60")


def test_what_a_killed_run_has_left_goes(source, tmp_path, runtime):
    left = tmp_path / ".c.0123abcd.partial"
    left.mkdir()
    (left / "genai_config.json").write_text("{")
    phiconv.compile_qnn(source, tmp_path / "c", soc="60")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_folder_that_comes_meanwhile_stays(source, tmp_path, runtime):
    def progress(_):
        (tmp_path / "c").mkdir(exist_ok=True)

    with pytest.raises(OutputError, match="exists already"):
        phiconv.compile_qnn(source, tmp_path / "c", soc="60", progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_compiled_folder_is_neither_compiled_nor_converted(source, tmp_path, runtime):
    phiconv.compile_qnn(source, tmp_path / "c", soc="60")
    with pytest.raises(UnsupportedModelError, match="compiled already"):
        phiconv.compile_qnn(tmp_path / "c", tmp_path / "d", soc="60")
    with pytest.raises(UnsupportedModelError, match="compiled for one kind of processor"):
        phiconv.open_model(tmp_path / "c")


@pytest.mark.parametrize("target", ["cpu", None])
def test_other_folders_are_refused(tmp_path, runtime, target):
    if target:
        phiconv.convert(FIXTURES / "tiny-phi4mini", tmp_path / "m", to="onnx", quant="q4")
    else:
        (tmp_path / "m").mkdir()
    with pytest.raises(UnsupportedModelError, match="--target qnn"):
        phiconv.compile_qnn(tmp_path / "m", tmp_path / "c", soc="60")


@pytest.mark.parametrize("name", ["../x.onnx", 7, None])
def test_names_that_lead_elsewhere_are_refused(source, tmp_path, runtime, name):
    shutil.copytree(source, tmp_path / "m")
    config = json.loads((source / "genai_config.json").read_text())
    config["model"]["decoder"]["pipeline"][0]["context"]["filename"] = name
    (tmp_path / "m" / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(MalformedFileError, match="same folder"):
        compile_folder(tmp_path / "m", tmp_path / "c", 60)


def test_links_out_of_the_folder_are_not_followed(source, tmp_path, runtime):
    shutil.copytree(source, tmp_path / "m")
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "m" / "more.json").symlink_to(tmp_path / "secret")
    made = phiconv.compile_qnn(tmp_path / "m", tmp_path / "c", soc="60")
    assert "tokenizer.json" in made.sizes
    assert "more.json" not in made.sizes


def test_without_the_compiler_it_says_what_to_install(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"phiconv\[qnn\]"):
        phiconv.compile_qnn(source, tmp_path / "c", soc="60")
    assert not [*tmp_path.iterdir()]
