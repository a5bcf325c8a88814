"""Folders for transformers.js, written and read back; no runtime is needed."""

from __future__ import annotations

import json
import shutil

import onnx
import pytest

import phiconv
from paths import FIXTURES
from phiconv.errors import MissingFileError, OutputExistsError, PhiconvError, UnsupportedModelError

SOURCE = FIXTURES / "tiny-phi3"


def write(folder, recipe="int4", source=SOURCE, *, split=None, force=False, **choices):
    made = phiconv.Choices(**{"layout": "transformers.js"} | choices)
    return phiconv.convert(
        source, folder, to="onnx", quant=recipe, choices=made, split_max_size=split, force=force
    )


def locations(graph):
    model = onnx.load(str(graph), load_external_data=False)
    return {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}


def section(folder):
    return json.loads((folder / "config.json").read_text())["transformers.js_config"]


# ----------------------------------------------------------------------------------------------- as a target


@pytest.mark.parametrize(
    ("recipe", "target", "dtype", "graph"),
    [
        ("f32", "cpu", "fp32", "model.onnx"),
        ("f16", "cpu", "fp16", "model_fp16.onnx"),
        ("f16", "webgpu", "fp16", "model_fp16.onnx"),
        ("int8-asym-g64", "cpu", "q8", "model_quantized.onnx"),
        ("int4-k_quant_mixed", "cpu", "q4", "model_q4.onnx"),
        ("int4-rtn", "dml", "q4f16", "model_q4f16.onnx"),
    ],
)
def test_names(tmp_path, recipe, target, dtype, graph):
    result = write(tmp_path / "m", recipe, target=target)
    files = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    receipt = f"onnx/{graph}.receipt.json"
    assert files == {".phiconv.json", receipt, *(f.name for f in result.plan.package.files)}
    assert {name for name in files - {receipt} if "/" in name} == {f"onnx/{graph}", f"onnx/{graph}_data"}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= files
    assert not files & {"genai_config.json", "tokenizer_module.json"}  # nobody reads them here
    assert locations(tmp_path / "m" / "onnx" / graph) == {f"{graph}_data"}
    cache = {"kv_cache_dtype": {dtype: "float16"}} if target != "cpu" else {}
    assert section(tmp_path / "m") == {"dtype": dtype, "use_external_data_format": {graph: 1}} | cache


def test_plan_is_exact(tmp_path):
    choices = phiconv.Choices(layout="transformers.js")
    made = phiconv.plan(SOURCE, tmp_path / "m", to="onnx", quant="q4", choices=choices)
    assert [(f.name, f.size) for f in made.package.files] == [
        (str(p.relative_to(tmp_path / "m")), p.stat().st_size) for p in write(tmp_path / "m").files
    ]


def test_the_usual_layout_is_genais(tmp_path):
    write(tmp_path / "a", layout=None)
    write(tmp_path / "b", layout="genai")
    write(tmp_path / "c")
    for path in (p for p in (tmp_path / "a").iterdir() if p.name not in ("receipt.json", ".phiconv.json")):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    ours, usual = tmp_path / "c" / "onnx" / "model_q4.onnx", tmp_path / "a" / "model.onnx"
    assert ours.with_suffix(".onnx_data").read_bytes() == (tmp_path / "a" / "model.onnx.data").read_bytes()
    assert ours.read_bytes() != usual.read_bytes()  # only the name of the weights is another one
    named = onnx.load(str(ours), load_external_data=False)
    for tensor in named.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entry.value.replace("model_q4.onnx_data", "model.onnx.data")
    assert named == onnx.load(str(usual), load_external_data=False)


def test_weights_in_several_files(tmp_path):
    write(tmp_path / "m", split=1_000_000)
    onnx_folder = tmp_path / "m" / "onnx"
    names = {p.name for p in onnx_folder.iterdir()} - {"model_q4.onnx", "model_q4.onnx.receipt.json"}
    count = section(tmp_path / "m")["use_external_data_format"]["model_q4.onnx"]
    assert names == {"model_q4.onnx_data", *(f"model_q4.onnx_data_{i}" for i in range(1, count))}
    assert count > 2
    assert locations(onnx_folder / "model_q4.onnx") == names
    assert all((onnx_folder / name).stat().st_size <= 1_000_000 for name in names)
    write(tmp_path / "whole")
    assert phiconv.compare(tmp_path / "whole", tmp_path / "m").total.max_error == 0
    with pytest.raises(OutputExistsError):
        write(tmp_path / "m")
    write(tmp_path / "m", force=True)
    names = {"model_q4.onnx", "model_q4.onnx_data", "model_q4.onnx.receipt.json"}
    assert {p.name for p in onnx_folder.iterdir()} == names


def test_another_type_may_stand_beside(tmp_path):
    for recipe in ("int4", "f32"):
        write(tmp_path / "m", recipe, force=True)
    assert {p.name for p in (tmp_path / "m" / "onnx").glob("*.onnx")} == {"model.onnx", "model_q4.onnx"}
    for name, differs in (("model.onnx", set()), ("model_q4.onnx", {"config.json"})):
        found = phiconv.verify(tmp_path / "m", receipt=tmp_path / "m" / "onnx" / f"{name}.receipt.json")
        assert {finding.file for finding in found.findings} == differs  # there is one for all graphs


@pytest.mark.parametrize("already", [False, True])
def test_nothing_is_left_of_a_failure(make_model, tmp_path, already):
    source = make_model(tmp_path / "s", "phi3", seed=1)
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2:] = b"\xff\x7f"  # not a number
    weights.write_bytes(data)
    if already:
        (tmp_path / "m").mkdir()
    with pytest.raises(PhiconvError, match="NaN"):
        write(tmp_path / "m", source=source)
    assert [p.name for p in tmp_path.iterdir() if p.name != "s"] == (["m"] if already else [])
    assert not already or not list((tmp_path / "m").iterdir())


@pytest.mark.parametrize(
    ("recipe", "choices", "says"),
    [
        ("bf16", {}, "transformers.js has no name for bf16; give --f16 or --f32"),
        ("int8", {"target": "webgpu"}, "no name for int8 computed in f16; give --q4, or --target cpu"),
        ("int4", {"layout": "optimum"}, "--layout optimum: no such layout; one of genai, transformers.js"),
        ("int4-qdq", {"accuracy_level": 0}, "--accuracy-level: of ONNX's own operators it is a setting"),
    ],
)
def test_what_has_no_place(tmp_path, recipe, choices, says):
    with pytest.raises(PhiconvError) as caught:
        write(tmp_path / "m", recipe, **choices)
    assert says in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_a_mixture_is_refused_by_name(model_folder, tmp_path):
    with pytest.raises(UnsupportedModelError, match="knows no model of type phimoe"):
        write(tmp_path / "m", source=model_folder("phimoe"))


def test_a_file_is_no_destination(tmp_path):
    with pytest.raises(PhiconvError, match=r"--layout transformers\.js writes a folder"):
        write(tmp_path / "x.onnx")


def test_what_a_source_says_of_its_own_graphs_is_replaced(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "s")
    config = json.loads((SOURCE / "config.json").read_text())
    config["transformers.js_config"] = {"dtype": "fp16", "device_config": {"webgpu": {"dtype": "q8"}}}
    (tmp_path / "s" / "config.json").write_text(json.dumps(config))
    write(tmp_path / "m", source=tmp_path / "s")
    assert section(tmp_path / "m") == {"dtype": "q4", "use_external_data_format": {"model_q4.onnx": 1}}


def test_a_note_on_answers_that_cross_the_original_context(model_folder, tmp_path):
    source = model_folder("phi4mini")
    assert "its 513th token" in write(tmp_path / "m", source=source).plan.package.notes[0]
    assert not write(tmp_path / "l", source=source, long_context=True).plan.package.notes
    assert not write(tmp_path / "n").plan.package.notes


def test_a_tokenizer_is_made_where_the_source_has_no_files(tmp_path):
    phiconv.convert(SOURCE, tmp_path / "a.gguf", quant="f16")
    write(tmp_path / "m", source=tmp_path / "a.gguf")
    assert "vocab" in json.loads((tmp_path / "m" / "tokenizer.json").read_text())["model"]
    assert "tokenizer_class" in json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())


# ----------------------------------------------------------------------------------------------- as a source


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers_js") / "site"
    write(folder)
    return folder


@pytest.fixture
def site(written, tmp_path):
    return shutil.copytree(written, tmp_path / "site")


def test_a_folder_and_its_graph_are_the_same_model(site, tmp_path, monkeypatch):
    graph = site / "onnx" / "model_q4.onnx"
    model = phiconv.open_model(site)
    assert model.tokenizer.special_ids["eos"] == 2048
    assert phiconv.open_model(graph).hyperparameters == model.hyperparameters
    assert phiconv.compare(site, graph).total.max_error == 0
    assert phiconv.compare(site, SOURCE).total.sqnr > 20
    phiconv.convert(graph, tmp_path / "x.gguf", quant="f16")
    assert phiconv.open_model(tmp_path / "x.gguf").tokenizer.tokens == model.tokenizer.tokens
    monkeypatch.chdir(site / "onnx")
    assert phiconv.open_model("model_q4.onnx").architecture == "phi3"


def test_its_own_section_stays_behind(site, tmp_path):
    phiconv.convert(site, tmp_path / "m", to="safetensors", quant="f16")
    assert "transformers.js_config" not in json.loads((tmp_path / "m" / "config.json").read_text())


def test_several_graphs_are_named(site):
    write(site, "f32", force=True)
    with pytest.raises(MissingFileError) as caught:
        phiconv.open_model(site)
    assert "2 .onnx files" in str(caught.value)
    assert "onnx/model.onnx, onnx/model_q4.onnx" in caught.value.hint
    kept = phiconv.compare(site / "onnx" / "model.onnx", SOURCE).total
    assert kept.max_error == 0


def test_original_weights_are_taken_before_graphs(site):
    shutil.copy(SOURCE / "model.safetensors", site)
    assert phiconv.open_model(site).format == "safetensors"


def test_what_training_leaves_is_no_original(site):
    (site / "training_args.bin").write_bytes(b"x")
    assert phiconv.open_model(site).format == "onnx"


def test_a_graph_with_settings_beside_it_does_not_look_above(site, tmp_path):
    config = json.loads((site / "config.json").read_text()) | {"rope_theta": 5000.0}
    (site / "onnx" / "config.json").write_text(json.dumps(config))
    assert phiconv.open_model(site / "onnx" / "model_q4.onnx").hyperparameters.rope.theta == 5000


@pytest.mark.parametrize("name", ["graphs", "onnx"])
def test_a_graph_elsewhere_is_plain_tensors(site, name):
    (site / "config.json").rename(site / ("config.json" if name == "graphs" else "settings.json"))
    (site / "onnx").rename(site / name)
    assert phiconv.open_model(site / name / "model_q4.onnx").architecture is None


def test_a_folder_without_config(site):
    (site / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"no config\.json in this folder"):
        phiconv.open_model(site)


@pytest.mark.parametrize("most", [1, 99])
def test_numbered_matrices_are_refused_for_what_they_are(site, most):
    graph = site / "onnx" / "model_q4.onnx"
    model = onnx.load(str(graph), load_external_data=False)
    matrices = [t.name for t in model.graph.initializer if "_proj.MatMul.weight_Q4" in t.name][:most]
    names = {name: f"onnx::MatMul_{i}" for i, name in enumerate(matrices)}
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(model, str(graph))
    with pytest.raises(UnsupportedModelError, match="names that do not say what they are, as onnx::MatMul_0"):
        phiconv.open_model(site)
