"""Signatures: made and checked, by phiconv and by OpenSSF's own tool; and what somebody may do to one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil

import pytest
from click.testing import CliRunner

import phiconv
from paths import FIXTURES
from phiconv.cli import main
from phiconv.verification.openssf import PublicKey
from phiconv.verification.signature import read_signature

SIGNATURES = FIXTURES / "signatures"
GGUF, FOLDER = "x.gguf", "mlx"

RELEASES = ["v0.3.1", "v1.0.0", "v1.0.1", "v1.1.0"]


def vectors(kind):
    return sorted((SIGNATURES / "vectors" / kind).iterdir())


@pytest.mark.parametrize("path", vectors("valid"), ids=lambda p: p.name)
def test_bundles_of_the_specification(path):
    by = {"key": "a key", "certificate": "a certificate", "sigstore": "Sigstore's servers"}
    signed = read_signature(path)
    assert signed.by == by[path.name.partition(".")[0]]
    assert signed.sums.keys() == {"signme-1", "signme-2"}


@pytest.mark.parametrize("path", [*vectors("invalid"), *vectors("invalid-payload")], ids=lambda p: p.name)
def test_what_the_specification_calls_none(path):
    with pytest.raises(phiconv.MalformedFileError):
        read_signature(path)


def needs_the_package():
    pytest.importorskip("model_signing", reason="needs the extra phiconv[sign]")


@pytest.mark.parametrize("release", RELEASES)
def test_signatures_of_older_releases(release, tmp_path):
    needs_the_package()
    signed = read_signature(SIGNATURES / release / "model.sig")
    assert PublicKey(SIGNATURES / "public.pem").refusal(signed) == ""
    names = {name: "signme-1" if name == "." else name for name in signed.sums}
    for name, digest in signed.sums.items():
        assert hashlib.sha256((SIGNATURES / release / names[name]).read_bytes()).hexdigest() == digest
    edited = tmp_path / "model.sig"
    text = json.loads(signed.data)
    payload = base64.b64decode(text["dsseEnvelope"]["payload"]).replace(b"bc9a717d", b"bc9a717e")
    text["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    edited.write_text(json.dumps(text))
    assert "does not hold" in PublicKey(SIGNATURES / "public.pem").refusal(read_signature(edited))


def make_key(folder, name, curve="SECP256R1", password=None):
    """A private and a public key, ``NAME.pem`` and ``NAME.pub.pem``."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    hidden = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, hidden)
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub.pem").write_bytes(public)


@pytest.fixture(scope="module")
def honest(model_folder, make_model, tmp_path_factory):
    """Signed outputs, another model's, and two keys."""
    needs_the_package()
    root = tmp_path_factory.mktemp("signed")
    make_model(root / "other-model", "phi3", seed=8)
    (root / "other").mkdir()
    make_key(root, "key")
    make_key(root, "other-key", "SECP384R1")
    for output in (root / GGUF, root / FOLDER):
        phiconv.convert(model_folder("phi3"), output, quant="q8", to="mlx" if output.suffix == "" else None)
        phiconv.sign(output, root / "key.pem")
    phiconv.convert(root / "other-model", root / "other" / GGUF, quant="q8")
    phiconv.sign(root / "other" / GGUF, root / "key.pem")
    return root


@pytest.fixture
def place(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "place")


def verify(output, **more):
    return phiconv.verify(output, key=output.parent / "key.pub.pem", **more)


def said(found):
    return "\n".join(": ".join(p for p in (f.file, f.at, f.what) if p) for f in found.findings)


def schemas():
    """What the specification says of a bundle, and of what is signed."""
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    texts = [json.loads(path.read_bytes()) for path in (SIGNATURES / "schemas").iterdir()]
    known = referencing.Registry().with_contents((text["$id"], text) for text in texts)
    return {
        name: jsonschema.Draft202012Validator(text, registry=known)
        for text in texts
        for name in ("bundle", "statement")
        if f"/{name}/" in text["$id"]
    }


@pytest.mark.parametrize("name", [GGUF, FOLDER])
def test_what_is_signed(name, honest):
    output = honest / name
    folder, receipt = (output, "receipt.json") if output.is_dir() else (honest, f"{name}.receipt.json")
    found = verify(output)
    assert (found.outcome, found.findings, found.notes) == ("verified", (), ())
    assert found.signature == (folder / "model.sig" if output.is_dir() else honest / f"{name}.sig")
    subjects = {s["name"] for s in json.loads((folder / receipt).read_bytes())["subject"]}
    assert read_signature(found.signature).sums.keys() == {*subjects, receipt}
    bundle = json.loads(found.signature.read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    checks = schemas()
    checks["bundle"].validate(bundle)
    checks["statement"].validate(statement)
    assert statement["subject"][0]["name"] == name
    assert str(honest) not in json.dumps(statement)
    (without,) = phiconv.verify(output).notes
    assert without == f"{found.signature.name} was not checked: give --key"


def test_openssf_reads_ours_and_we_read_theirs(place):
    from model_signing._cli import main as model_signing

    def run(*arguments):
        done = CliRunner().invoke(model_signing, [*map(str, arguments)])
        assert done.exit_code == 0, done.output

    public, private = place / "key.pub.pem", place / "key.pem"
    run("verify", "key", place / FOLDER, "--signature", place / FOLDER / "model.sig", "--public_key", public)
    alone = ["--signature", place / f"{GGUF}.sig", "--public_key", public, "--ignore_unsigned_files"]
    run("verify", "key", place, *alone)
    for output, signature in (
        (place / FOLDER, place / FOLDER / "model.sig"),
        (place / GGUF, place / "file.sig"),
    ):
        signature.unlink(missing_ok=True)
        run("sign", "key", output, "--signature", signature, "--private_key", private)
    assert verify(place / FOLDER).outcome == "verified"
    found = verify(place / GGUF, signature=place / "file.sig")
    assert found.outcome == "verified"
    assert found.notes[0].startswith("x.gguf.receipt.json is not signed: the signature is of the file alone")
    run("sign", "key", place / "other", "--signature", place / "whole.sig", "--private_key", private)
    public.rename(place / "other/key.pub.pem")
    (place / "other" / f"{GGUF}.sig").write_bytes(b"it was signed, too")
    found = verify(place / "other" / GGUF, signature=place / "whole.sig")
    assert said(found) == "x.gguf.sig: is not as it was signed; get it again"


def flip(path, offset=-9):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def sign_again(place, change):
    """Somebody with another key, who says that it is the right one."""
    hint = json.loads((place / f"{GGUF}.sig").read_bytes())["verificationMaterial"]["publicKey"]["hint"]
    phiconv.sign(place / GGUF, place / "other-key.pem", force=True)
    text = json.loads((place / f"{GGUF}.sig").read_bytes())
    text["verificationMaterial"]["publicKey"]["hint"] = change(hint)
    (place / f"{GGUF}.sig").write_text(json.dumps(text))


def edit(place, old, new):
    """Changes what is signed, and leaves the signature of it as it was."""
    text = json.loads((place / f"{GGUF}.sig").read_bytes())
    payload = base64.b64decode(text["dsseEnvelope"]["payload"])
    assert old in payload
    text["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(old, new)).decode()
    (place / f"{GGUF}.sig").write_text(json.dumps(text))


def other_receipt(place):
    """Another receipt that has the right sums: only the signature tells."""
    path = place / f"{GGUF}.receipt.json"
    path.write_bytes(path.read_bytes().replace(b'"recipe": "Q8_0"', b'"recipe": "Q9_0"'))


# What somebody does: to which output, how, what comes of it, and what is said.
TAMPERING = {
    "a weight": (GGUF, lambda p: flip(p / GGUF), "differs", "x.gguf: is not as it was signed; get it again"),
    "a receipt": (GGUF, other_receipt, "differs", "x.gguf.receipt.json: is not as it was signed"),
    "a config": (FOLDER, lambda p: flip(p / "mlx/config.json"), "differs", "config.json: is not as it was"),
    "a file less": (
        FOLDER,
        lambda p: (p / "mlx/tokenizer.json").unlink(),
        "differs",
        "tokenizer.json: is missing",
    ),
    "a file more": (FOLDER, lambda p: (p / "mlx/a.py").touch(), "differs", "a.py: is not of this output"),
    "another key": (
        GGUF,
        lambda p: phiconv.sign(p / GGUF, p / "other-key.pem", force=True),
        "differs",
        "x.gguf.sig: is by another key than key.pub.pem; ask whoever signed for the right one",
    ),
    "a forged hint": (
        GGUF,
        lambda p: sign_again(p, lambda hint: hint),
        "differs",
        "x.gguf.sig: does not hold with key.pub.pem: it was changed, or another key made it; get it again",
    ),
    "no hint": (GGUF, lambda p: sign_again(p, lambda _: ""), "differs", "x.gguf.sig: does not hold"),
    "another sum": (
        GGUF,
        lambda p: edit(p, b'"digest": "', b'"digest": "'[:-1] + b'"0'),
        "unknown",
        "SHA-256 sum",
    ),
    "another name": (
        GGUF,
        lambda p: edit(p, b'"x.gguf"', b'"y.gguf"'),
        "differs",
        "x.gguf.sig: does not hold",
    ),
    "another model's": (
        GGUF,
        lambda p: shutil.copy(p / "other" / f"{GGUF}.sig", p),
        "differs",
        "x.gguf: is not as it was signed",
    ),
    "of other files": (
        FOLDER,
        lambda p: shutil.copy(p / f"{GGUF}.sig", p / "mlx/model.sig"),
        "differs",
        "model.sig: is of other files (x.gguf, x.gguf.receipt.json); give --signature the one of this output",
    ),
    "none": (
        GGUF,
        lambda p: (p / f"{GGUF}.sig").unlink(),
        "unknown",
        "there is no signature x.gguf.sig: give",
    ),
    "no JSON": (GGUF, lambda p: (p / f"{GGUF}.sig").write_bytes(b"-----BEGIN"), "unknown", "not valid JSON"),
    "a certificate's": (
        GGUF,
        lambda p: shutil.copy(vectors("valid")[0], p / f"{GGUF}.sig"),
        "unknown",
        "made with a certificate",
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering(name, place):
    output, tamper, outcome, says = TAMPERING[name]
    tamper(place)
    found = verify(place / output)
    assert found.outcome == outcome
    assert says in said(found) + found.why


def test_a_file_that_came_later_and_is_in_the_receipt(place):
    """The receipt and the file were changed together, as one does who has not the key."""
    phiconv.convert(place / "other-model", place / GGUF, quant="q8", split_max_size=50_000, force=True)
    found = verify(place / GGUF)
    assert found.outcome == "differs"
    assert "x-00001-of-00005.gguf: is not signed: it came later" in said(found)
    assert "x.gguf: is signed, and missing; get it again" in said(found)


def test_only_what_is_right_is_signed(place):
    flip(place / GGUF)
    with pytest.raises(phiconv.InputError, match=r"x\.gguf: is not what its receipt says: x\.gguf: tensor"):
        phiconv.sign(place / GGUF, place / "key.pem", force=True)
    (place / f"{GGUF}.receipt.json").unlink()
    with pytest.raises(phiconv.InputError, match="has no receipt"):
        phiconv.sign(place / GGUF, place / "key.pem", force=True)
    with pytest.raises(phiconv.OutputExistsError, match=r"model\.sig: exists already"):
        phiconv.sign(place / FOLDER, place / "key.pem")
    with pytest.raises(phiconv.OutputExistsError, match=r"model\.sig; choose another folder, or remove"):
        phiconv.convert(place / "other-model", place / FOLDER, to="mlx", force=True)


def test_a_name_that_is_no_text(place, model_folder):
    odd = place / os.fsdecode(b"\xff.gguf")
    try:
        phiconv.convert(model_folder("phi3"), odd, quant="q8")
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(phiconv.InputError, match="has a name that is no UTF-8"):
        phiconv.sign(odd, place / "key.pem")


def test_keys(place):
    make_key(place, "secret", "SECP521R1", b"password")
    make_key(place, "coin", "SECP256K1")
    with pytest.raises(
        phiconv.InputError, match="is encrypted, and there is no password; give --password-file"
    ):
        phiconv.sign(place / GGUF, place / "secret.pem")
    with pytest.raises(phiconv.InputError, match="is encrypted with another password"):
        phiconv.sign(place / GGUF, place / "secret.pem", password=b"guess")
    with pytest.raises(phiconv.InputError, match="is not encrypted"):
        phiconv.sign(place / GGUF, place / "key.pem", password=b"password")
    with pytest.raises(phiconv.InputError, match=r"is no private key in PEM; make one with: openssl"):
        phiconv.sign(place / GGUF, place / "key.pub.pem")
    with pytest.raises(phiconv.InputError, match="is no key on one of the curves P-256, P-384, P-521"):
        phiconv.sign(place / GGUF, place / "coin.pem")
    for name, says in (
        ("key.pem", "is no public key in PEM; get it with"),
        ("coin.pub.pem", "of the curves"),
    ):
        with pytest.raises(phiconv.InputError, match=says):
            phiconv.verify(place / GGUF, key=place / name)
    with pytest.raises(phiconv.UsageError, match="a signature is checked with a key; give --key"):
        phiconv.verify(place / GGUF, signature=place / f"{GGUF}.sig")
    (place / "password").write_bytes(b"password\n")
    options = ["--key", place / "secret.pem", "--password-file", place / "password", "-o", place / "o.sig"]
    done = CliRunner().invoke(main, [*map(str, ["sign", place / GGUF, *options, "--json"])])
    assert json.loads(done.stdout) == {"signature": str(place / "o.sig")}
    found = phiconv.verify(place / GGUF, key=place / "secret.pub.pem", signature=place / "o.sig")
    assert found.outcome == "verified"


def test_the_command_line_and_no_connection(place, monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    def run(*arguments):
        return CliRunner().invoke(main, [*map(str, arguments)])

    assert run("sign", place / FOLDER, "--key", place / "key.pem", "--force").exit_code == 0
    arguments = ["verify", place / FOLDER, "--key", place / "key.pub.pem"]
    done = run(*arguments)
    assert done.exit_code == 0
    assert "signed by the key, model.sig" in done.output
    assert json.loads(run(*arguments, "--json").stdout)["signature"] == str(place / FOLDER / "model.sig")
    assert run(*arguments, "--signature", place / f"{GGUF}.sig").exit_code == 3
    assert run(*arguments, "--signature", place / "none.sig").exit_code == 4
    assert run(*arguments[:-1], place / "none.pem").exit_code == 1


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "model_signing", None)
    says = "signatures are made and checked with model-signing, which is not installed"
    for command in ("sign", "verify"):
        done = CliRunner().invoke(main, [command, str(tmp_path), "--key", str(tmp_path / "key.pem")])
        assert done.exit_code == 2
        assert done.stderr.splitlines() == [f"phiconv: {says}; pip install 'phiconv[sign]'"]
