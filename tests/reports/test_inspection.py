"""What is refused can be looked at: all that there is of it, and the reason last."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from click.testing import CliRunner

import phiconv
from bad_paths import KINDS, TINY, change, whole
from phiconv.cli import main

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the kinds have links and pipes")


def inspected(path):
    """The object and the lines, which say the same; the exit code."""
    told = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    shown = CliRunner().invoke(main, ["inspect", str(path)])
    assert told.exit_code == shown.exit_code
    assert told.stderr == shown.stderr
    found = json.loads(told.stdout)
    assert len(found["tensors"]) == sum(1 for t in found["tensors"] if t["name"] in shown.stdout)
    return found, shown.stdout, shown.stderr


@pytest.mark.parametrize(
    ("kind", "stated", "tensors", "tokens", "hidden"),
    [
        ("config without a key", "Phi3ForCausalLM", 39, 2059, None),
        ("unknown rope", "Phi3ForCausalLM", 39, 2059, None),
        ("unknown architecture", "Mamba", 39, 2059, None),
        ("missing tensor", "Phi3ForCausalLM", 39, 2059, 256),
        ("misshaped tensor", "Phi3ForCausalLM", 39, 2059, 256),
        ("zero3", "Phi3ForCausalLM", 3, 2059, 256),
        ("pointer tokenizer", "Phi3ForCausalLM", 39, None, 256),
        ("pointer config", None, 39, None, None),
        ("pointer safetensors", "Phi3ForCausalLM", 0, 2059, 256),
        ("config alone", "Phi3ForCausalLM", 0, 2059, 256),
        ("missing shard", "Phi3ForCausalLM", 1, 2059, 256),
        ("cut safetensors", None, 39, None, None),
        ("cut gguf", "phi3", 39, 2059, None),
        ("cut gguf header", "phi3", 0, None, None),
        ("cut onnx", "Phi3ForCausalLM", 0, 2059, 256),
        ("gguf without keys", "phi3", 2, None, None),
        ("adapter", None, 2, None, None),
        ("adapter with config", "Phi3ForCausalLM", 2, 2059, 256),
        ("adapter beside its base", "Phi3ForCausalLM", 39, 2059, 256),
        ("gptq", "Phi3ForCausalLM", 2, 2059, 256),
        ("bitsandbytes", "Phi3ForCausalLM", 2, 2059, 256),
        ("fp8", "Phi3ForCausalLM", 1, 2059, 256),
    ],
)
def test_what_is_shown(tmp_path, kind, stated, tensors, tokens, hidden):
    found, shown, reason = inspected(KINDS[kind][0](tmp_path))
    assert found["architecture"] is None
    assert found["error"]["code"] == KINDS[kind][1]
    assert found["error"]["message"] in reason
    if kind == "cut safetensors":  # given as a file, with config.json beside it
        stated, tokens, hidden = "Phi3ForCausalLM", 2059, 256
    assert found["stated_architecture"] == stated
    assert len(found["tensors"]) == tensors
    assert (found["tokenizer"] or {}).get("tokens") == tokens
    assert (found["hyperparameters"] or {}).get("hidden_size") == hidden
    assert str(stated or "not stated") in shown.splitlines()[0]
    assert (f"{tensors} tensors" if tensors else "no tensors") in shown


def test_config_is_shown_where_it_cannot_be_understood(tmp_path):
    folder = change(whole(tmp_path / "m"), rope_scaling={"type": "yarn", "factor": 2})
    found, shown, reason = inspected(folder)
    assert found["config"]["rope_scaling"] == {"type": "yarn", "factor": 2}
    assert "  hidden_size = 256" in shown
    assert "'yarn' is not supported" in reason


def test_a_gguf_of_another_family(tmp_path):
    found, shown, reason = inspected(KINDS["gguf of another family"][0](tmp_path))
    assert (found["architecture"], found["stated_architecture"]) == (None, "mamba")
    assert "error" not in found
    assert "gguf, plain tensors of mamba" in shown
    assert reason == ""


def test_a_vocabulary(tmp_path):
    """As in llama.cpp's tree: all metadata of a model, and no tensor."""
    import gguf

    source = phiconv.convert(TINY, tmp_path / "source.gguf", quant="q8").files[0]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "phi3")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            sub_type = field.types[-1] if array else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, shown, reason = inspected(tmp_path / "v.gguf")
    assert "gguf, a vocabulary of phi3" in shown
    assert found["tokenizer"]["tokens"] == 2059
    assert found["tokenizer"]["chat templates"] == ["default"]
    assert found["metadata"]["phi3.embedding_length"] == 256
    assert reason == ""
    with pytest.raises(phiconv.MalformedFileError, match="take the file of the whole model"):
        phiconv.plan(tmp_path / "v.gguf", tmp_path / "o.gguf")


@pytest.mark.parametrize("name", ["x.gguf", "m"])
def test_parts_that_are_there(tmp_path, name):
    to = None if name.endswith("gguf") else "safetensors"
    files = phiconv.convert(TINY, tmp_path / name, to=to, split_max_size=2_000_000).files
    parts = [file for file in files if file.suffix in {".gguf", ".safetensors"}]
    parts[-1].unlink()
    os.truncate(parts[-2], parts[-2].stat().st_size - 1)
    found, _, reason = inspected(parts[0] if to is None else tmp_path / name)
    known = {t["name"] for t in found["tensors"]}
    assert 0 < len(known) < 39
    assert parts[-1].name in reason


def test_a_gguf_that_ends_anywhere(tmp_path):
    """What was read is shown, and the bytes that are not there are never asked for."""
    source = phiconv.convert(TINY, tmp_path / "x.gguf", quant="q8").files[0]
    size = source.stat().st_size
    counts = []
    for end in (5, 100, 3000, 40_000, 60_000, 100_000, size // 2, size - 1):
        shutil.copy(source, tmp_path / "y.gguf")
        os.truncate(tmp_path / "y.gguf", end)
        told = CliRunner().invoke(main, ["inspect", str(tmp_path / "y.gguf"), "--json"])
        assert told.exit_code == 1
        found = json.loads(told.stdout)
        assert found["error"]["code"] == "malformed_file"
        counts.append(len(found.get("metadata", ())) + len(found.get("tensors", ())))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > 60


def test_the_library_shows_it_too(tmp_path):
    folder = change(whole(tmp_path / "m"), num_hidden_layers=7)
    seen = phiconv.examine(folder)
    assert (seen.stated, seen.architecture, len(seen.found.stored)) == ("Phi3ForCausalLM", None, 39)
    assert "this tensor is missing" in str(seen.error)
    with pytest.raises(phiconv.MalformedFileError, match="this tensor is missing"):
        phiconv.open_model(folder)
    whole_model = phiconv.examine(TINY)
    assert (whole_model.error, whole_model.architecture) == (None, "phi3")
    assert whole_model.hyperparameters == phiconv.open_model(TINY).hyperparameters
    with pytest.raises(phiconv.MissingFileError):
        phiconv.examine(tmp_path / "nowhere")
