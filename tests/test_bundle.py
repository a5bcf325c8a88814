"""A bundle installs and converts where there is no network; its lists say what is in it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import pytest
from click.testing import CliRunner

from paths import FIXTURES, ROOT
from phiconv.bundling.bundle import LEFT_OUT, make_bundle
from phiconv.bundling.platforms import PLATFORMS, here, targets
from phiconv.bundling.wheels import own_wheel, read_wheel
from phiconv.cli import main
from phiconv.errors import OutputExistsError, UsageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle for this Python; needs an index."""
    folder = tmp_path_factory.mktemp("carry") / "bundle"
    try:
        make_bundle(folder, [here()])
    except UsageError as error:
        pytest.skip(f"no index: {error}")
    return folder


def test_lists_name_every_file(bundle):
    sums = dict(line.split("  ")[::-1] for line in (bundle / "SHA256SUMS").read_text().splitlines())
    files = {p.relative_to(bundle).as_posix(): p for p in bundle.rglob("*") if p.is_file()}
    del files["SHA256SUMS"]
    assert {*sums} == {*files}
    assert all(hashlib.sha256(p.read_bytes()).hexdigest() == sums[name] for name, p in files.items())
    wheels = {read_wheel(p).name: read_wheel(p) for p in (bundle / "wheels").iterdir()}
    (requirements,) = (bundle / "requirements").iterdir()
    lines = [line for line in requirements.read_text().splitlines() if not line.startswith("#")]
    expected = {f"{w.name}=={w.version} --hash=sha256:{w.sha256}" for w in wheels.values()}
    assert {*lines} == expected
    assert {"phiconv", "numpy", "onnx", "gguf"} <= {*wheels}
    assert not {*wheels} & {name for names in LEFT_OUT.values() for name in names}
    assert not {"urllib3", "certifi", "idna"} & {*wheels}
    pages = {p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert {name for name in files if name.startswith("docs/")} == pages


def test_the_list_of_materials_is_valid(bundle):
    reason = "cyclonedx-python-lib is not installed"
    validation = pytest.importorskip("cyclonedx.validation.json", reason=reason)
    schema = pytest.importorskip("cyclonedx.schema", reason=reason)
    text = (bundle / "sbom.cdx.json").read_text()
    found = validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text)
    assert found is None, found
    document = json.loads(text)
    names = {c["name"] for c in document["components"]} | {document["metadata"]["component"]["name"]}
    assert names == {read_wheel(p).name for p in (bundle / "wheels").iterdir()}
    needs = {d["ref"].split("/")[-1].split("@")[0]: d["dependsOn"] for d in document["dependencies"]}
    assert any(ref.startswith("pkg:pypi/numpy@") for ref in needs["phiconv"])


def test_it_installs_and_converts_without_a_network(bundle, tmp_path):
    offline = ["unshare", "--net"]
    if not shutil.which("unshare") or subprocess.run([*offline, "true"], check=False).returncode:
        pytest.skip("no network namespaces here")
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*offline, python, bundle / "install.py", "-q"], check=True)
    modules = "import sys, phiconv.cli, phiconv_formats.gguf, phiconv_formats.onnx; "
    probe = f"{modules}print([m for m in ('requests', 'urllib3', 'tqdm') if m in sys.modules])"
    told = subprocess.run([python, "-c", probe], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "[]"
    for target in ("out.gguf", "out.onnx"):
        command = [*offline, environment / "bin" / "phiconv", FIXTURES / "tiny-phi3", tmp_path / target]
        subprocess.run([*command, "--q4", "--quiet"], check=True)
    ours = CliRunner().invoke(main, [str(FIXTURES / "tiny-phi3"), str(tmp_path / "ours.gguf"), "--q4", "-q"])
    assert ours.exit_code == 0
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "ours.gguf").read_bytes()


def test_a_changed_file_is_not_installed(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("onnx*", "numpy*"))
    page = copy / "docs" / "gguf.md"
    page.write_bytes(page.read_bytes() + b" ")
    told = subprocess.run([sys.executable, copy / "install.py"], check=False, capture_output=True, text=True)
    assert told.returncode
    assert "docs/gguf.md is not what" in told.stderr


def test_the_own_wheel_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (own_wheel(tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = archive.namelist()
        record = archive.read(next(n for n in names if n.endswith("RECORD"))).decode().splitlines()
    assert {line.partition(",")[0] for line in record} == {*names}
    assert {"phiconv/cli/__init__.py", "phiconv_formats/py.typed", "phiconv/bundling/install.py.txt"} <= {
        *names
    }
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_builds_are_reproducible(tmp_path, kind):
    """Two builds of two copies, with other times and other rights, are the same bytes."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True, text=True)
    names = [n for n in tracked.stdout.split("\0") if n and not n.startswith("fixtures/")]
    if not names:
        pytest.skip("no git repository")
    built = []
    for copy, mode in (("one", 0o644), ("two", 0o600)):
        for name in names:
            target = tmp_path / copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
            target.chmod(mode)
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", tmp_path / f"{copy}-dist"]
        subprocess.run(command, cwd=tmp_path / copy, check=True, capture_output=True)
        (path,) = (tmp_path / f"{copy}-dist").iterdir()
        built.append(path.read_bytes())
    assert built[0] == built[1]


def test_names_of_machines():
    assert [t.name for t in targets("3.11,3.13", "linux-x86_64")] == [
        "cp311-linux-x86_64",
        "cp313-linux-x86_64",
    ]
    assert targets("", "") == [here()]
    for pythons, platforms in (("3.9", ""), ("4.0", ""), ("", "linux"), ("3", "")):
        with pytest.raises(UsageError):
            targets(pythons, platforms)
    assert here().platform in PLATFORMS


def test_the_folder_must_be_empty(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExistsError):
        make_bundle(tmp_path, [here()])
    told = CliRunner().invoke(main, ["bundle", str(tmp_path)])
    assert told.exit_code != 0
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_extra(tmp_path):
    with pytest.raises(UsageError, match="--extra hats"):
        make_bundle(tmp_path / "b", [here()], ["hats"])
    assert not [*tmp_path.iterdir()]
