"""Signatures changed at random, and signed anew: each is read and judged, or refused in words.

``PHICONV_FUZZ_EXAMPLES`` is that of test_readers_fuzz.py.
"""

from __future__ import annotations

import base64
import json
import os

import pytest
from hypothesis import HealthCheck, event, given, settings

from mutations import changes, json_changes, mutate, mutate_json
from paths import FIXTURES
from phiconv.errors import PhiconvError
from phiconv.verification.openssf import PublicKey
from phiconv.verification.signature import read_signature

EXAMPLES = int(os.environ.get("PHICONV_FUZZ_EXAMPLES", "20"))
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIGNATURE = FIXTURES / "signatures/v1.1.0/model.sig"
PAYLOAD = "application/vnd.in-toto+json"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A private key, and the public one as it checks signatures."""
    pytest.importorskip("model_signing", reason="needs the extra phiconv[sign]")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path_factory.mktemp("keys") / "public.pem"
    path.write_bytes(
        private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, PublicKey(path)


def judged(path, key=None):
    """What becomes of a file."""
    try:
        signed = read_signature(path)
    except PhiconvError as error:
        return type(error).__name__ if str(error).isprintable() else pytest.fail(repr(str(error)))
    if key is None or signed.by != "a key":
        return "read"
    refusal = key.refusal(signed)
    assert refusal.isprintable()
    return "refused" if refusal else "holds"


@given(wanted=changes())
@SETTINGS
def test_bytes(wanted, tmp_path):
    path = tmp_path / "model.sig"
    path.write_bytes(mutate(SIGNATURE.read_bytes(), wanted))
    event(judged(path))


@given(of_bundle=json_changes(most=1), of_statement=json_changes(most=2))
@SETTINGS
def test_values_that_the_key_has_signed(of_bundle, of_statement, keys, tmp_path):
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    private, public = keys
    bundle = json.loads(SIGNATURE.read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload = json.dumps(mutate_json(statement, of_statement)).encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)
    made = private.sign(signed, ec.ECDSA(hashes.SHA256()))
    bundle["verificationMaterial"]["publicKey"]["hint"] = ""
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(made).decode()
    path = tmp_path / "model.sig"
    for text in (bundle, mutate_json(bundle, of_bundle)):
        path.write_text(json.dumps(text))
        event(judged(path, public))
