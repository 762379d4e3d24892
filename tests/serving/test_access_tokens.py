"""JSON Web Tokens: signed by real keys, and by those who would like to be believed."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from seatrial.errors import InvalidSettings, Unauthenticated
from seatrial.settings import Tokens as Settings
from seatrial_serving.access.tokens import LONGEST, FiledKeys, Tokens, parse
from tests.conditions import until
from tests.servers import serving
from tests.serving.callers import grant
from tests.serving.models import LinearBundle

ISSUER, AUDIENCE = "https://issuer.example.com", "seatrial"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwk(key: Any, number: str, **more: Any) -> dict[str, Any]:
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return kind.to_jwk(key.public_key(), as_dict=True) | {"kid": number} | more


JWKS = {"keys": [jwk(RSA, "r"), jwk(CURVE, "e", alg="ES256"), jwk(STRANGER, "x", use="enc")]}


def claims(**change: Any) -> dict[str, Any]:
    now = int(time.time())
    given = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 600} | change
    return {name: value for name, value in given.items() if value is not None}


def signed(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", /, **change: Any) -> bytes:
    headers = {"kid": kid} if kid else {}
    return jwt.encode(claims(**change), key, algorithm, headers=headers).encode()


def tokens(tmp_path: Path, document: Any = None, **change: Any) -> Tokens:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(document or JWKS))
    settings = Settings(issuer=ISSUER, audience=AUDIENCE, keys=str(file), **change)
    return Tokens(settings, FiledKeys([file], lambda: parse(file.read_bytes(), where=str(file))))


@pytest.mark.parametrize("made", [signed, lambda: signed(CURVE, "ES256", "e"), lambda: signed(aud=[AUDIENCE, "b"])])
def test_a_token_of_the_issuer_says_who_asks(tmp_path: Path, made: Callable[[], bytes]) -> None:
    believed = tokens(tmp_path)
    for _ in range(2):  # once verified, once remembered
        assert believed.verify(made()).subject == "alice"


def in_parts(header: dict[str, Any], payload: dict[str, Any], signature: Callable[[bytes], bytes]) -> bytes:
    def encoded(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    told = encoded(json.dumps(header).encode()) + b"." + encoded(json.dumps(payload).encode())
    return told + b"." + encoded(signature(told))


PUBLIC = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def confused(told: bytes) -> bytes:
    """The public key taken for a secret that both ends know."""
    return hmac.new(PUBLIC, told, hashlib.sha256).digest()


WRONG: dict[str, Callable[[], bytes]] = {
    "expired": lambda: signed(exp=int(time.time()) - 60),
    "not yet": lambda: signed(nbf=int(time.time()) + 600),
    "issued in the future": lambda: signed(iat=int(time.time()) + 600),
    "another issuer": lambda: signed(iss="https://else.example.com"),
    "another audience": lambda: signed(aud="else"),
    "no audience": lambda: signed(aud=None),
    "no end": lambda: signed(exp=None),
    "an end that is no time": lambda: signed(exp="never"),
    "no subject": lambda: signed(sub=None),
    "another's key": lambda: signed(STRANGER),
    "another's key under its own id": lambda: signed(STRANGER, "RS256", "x"),
    "an unknown key": lambda: signed(RSA, "RS256", "unknown"),
    "no key, where there are several": lambda: signed(RSA, "RS256", None),
    "an algorithm that is not believed": lambda: signed(RSA, "RS512"),
    "an algorithm of another kind of key": lambda: signed(CURVE, "ES256", "r"),
    "unsigned": lambda: in_parts({"alg": "none", "kid": "r"}, claims(), lambda _: b""),
    "unsigned, in capitals": lambda: in_parts({"alg": "NONE", "kid": "r"}, claims(), lambda _: b""),
    "HMAC with the public key": lambda: in_parts({"alg": "HS256", "kid": "r"}, claims(), confused),
    "a key of its own": lambda: jwt.encode(
        claims(), STRANGER, "RS256", headers={"kid": "r", "jwk": jwk(STRANGER, "r")}
    ).encode(),
    "what must be understood": lambda: jwt.encode(
        claims(), RSA, "RS256", headers={"kid": "r", "crit": ["x"], "x": 1}
    ).encode(),
    "changed": lambda: in_parts(
        {"alg": "RS256", "kid": "r"},
        claims(sub="root"),
        lambda _: base64.urlsafe_b64decode(signed().split(b".")[2] + b"=="),
    ),
    "a kid that is no text": lambda: in_parts({"alg": "RS256", "kid": ["r"]}, claims(), lambda _: b"x"),
    "deep": lambda: base64.urlsafe_b64encode(b"[" * 9000) + b".e30.AA",
    "too long": lambda: signed(more="x" * LONGEST),
    "nonsense": lambda: b"a.b.c",
    "no dots": lambda: b"\xff\xfe",
}


@pytest.mark.parametrize("made", WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_token_is_found(tmp_path: Path, made: Callable[[], bytes]) -> None:
    believed = tokens(tmp_path, leeway_s=1)
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            believed.verify(made())


def test_a_token_that_was_believed_expires(tmp_path: Path) -> None:
    now = time.time()
    believed = tokens(tmp_path, leeway_s=0)
    believed._clock = lambda: now
    token = signed()
    assert believed.verify(token).subject == "alice"
    now += 601
    with pytest.raises(Unauthenticated, match="expired"):
        believed.verify(token)


def test_rights_may_go_by_any_claim(tmp_path: Path) -> None:
    believed = tokens(tmp_path, claim="groups")
    assert believed.verify(signed(groups=["a", "b", 7])).values == ("a", "b")
    assert believed.verify(signed(groups="a")).values == ("a",)
    assert believed.verify(signed()).values == ()


PRIVATE = json.dumps({"keys": [jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True)]}).encode()


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b'{"keys": 1}', b'{"keys": []}', b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "r"}]}',
     b'{"keys": [{"kty": "RSA", "n": "?", "e": "AQAB"}]}', b'{"keys": ["RSA"]}', pytest.param(PRIVATE, id="private")],
)  # fmt: skip
def test_what_is_no_set_of_public_keys_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidSettings, match=r"serving\.access\.tokens\.keys"):
        parse(document, where="here")


@contextmanager
def published(document: dict[str, Any]) -> Iterator[str]:
    """`document`, as it is at the time, on a port of its own."""

    class Publisher(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Publisher)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/keys"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_fetches_the_keys_of_the_issuer_and_follows_when_they_change(tmp_path: Path) -> None:
    file = tmp_path / "access.json"
    grant(file, "token:team-a", acts=["infer", "read"])
    document: dict[str, Any] = {"keys": [jwk(RSA, "r")]}
    with published(document) as address:
        environment = {
            "SEATRIAL_SERVING__ACCESS__FILE": str(file),
            "SEATRIAL_SERVING__ACCESS__TOKENS__ISSUER": ISSUER,
            "SEATRIAL_SERVING__ACCESS__TOKENS__AUDIENCE": AUDIENCE,
            "SEATRIAL_SERVING__ACCESS__TOKENS__KEYS": address,
            "SEATRIAL_SERVING__ACCESS__TOKENS__CLAIM": "groups",
            "SEATRIAL_SERVING__ENGINES__COUNT": "1",
        }
        with serving(LinearBundle().write(tmp_path).path, place=tmp_path / "s", environment=environment) as server:

            def ask(token: bytes) -> int:
                headers = {"authorization": f"Bearer {token.decode()}"}
                return httpx.get(server.url("/v2/models/linear"), headers=headers).status_code

            until(lambda: ask(signed(groups=["team-a", "team-b"])) == 200)
            assert ask(signed(groups=["team-b"])) == 401
            assert ask(signed()) == 401
            assert ask(in_parts({"alg": "none"}, claims(groups=["team-a"]), lambda _: b"")) == 401
            renewed = signed(CURVE, "ES256", "e", groups=["team-a"])
            assert ask(renewed) == 401
            document["keys"] = [jwk(CURVE, "e")]
            until(lambda: ask(renewed) == 200)
            assert ask(signed(groups=["team-a"])) == 401, "the issuer has that key no more"
