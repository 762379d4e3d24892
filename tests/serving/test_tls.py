"""TLS on every port that callers reach, client certificates, and certificates that change while the server runs."""

import json
import shutil
import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from cryptography import x509
from tritonclient.utils import InferenceServerException

from seatrial.errors import InvalidSettings
from seatrial.settings import Tls, load_settings
from seatrial.tls import listening
from seatrial_promotion import status
from seatrial_promotion.status import Answer
from tests.commands import type_seatrial
from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.callers import grant
from tests.serving.certificates import Authority, Pair
from tests.serving.models import LinearBundle, linear

X = [[1.0, 2.0, 3.0, 4.0]]
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
TRUTH = linear(X)[0].tolist()
INFER = "/v2/models/linear/infer"


@dataclass(frozen=True)
class Secured:
    server: Server
    authority: Authority
    ours: Pair
    folder: Path
    """Holds the files that the server was told of."""

    def url(self, path: str, *, where: str = "") -> str:
        return f"https://{where or self.server.http}{path}"

    def client(self, certificate: Pair | None = None, *, trusting: Path | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(trusting or self.authority.certificate))
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return httpx.Client(verify=context, timeout=30)

    def triton(self, certificate: Pair | None = None) -> triton_grpc.InferenceServerClient:
        return triton_grpc.InferenceServerClient(
            self.server.grpc,
            ssl=True,
            root_certificates=str(self.authority.certificate),
            private_key=str(certificate.key) if certificate else None,
            certificate_chain=str(certificate.certificate) if certificate else None,
        )


def put(pair: Pair, folder: Path) -> None:
    shutil.copy(pair.certificate, folder / "server.pem")
    shutil.copy(pair.key, folder / "server.key")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder / "authority")
    put(authority.issue("server"), folder)
    access = folder / "access.json"
    grant(access, "certificate:spiffe://here/worker", acts=["infer"])
    grant(access, "certificate:operator", acts=["read", "manage"])
    environment = {
        "SEATRIAL_SERVING__TLS__CERTIFICATE": str(folder / "server.pem"),
        "SEATRIAL_SERVING__TLS__KEY": str(folder / "server.key"),
        "SEATRIAL_SERVING__TLS__CLIENT_CA": str(authority.certificate),
        "SEATRIAL_SERVING__TLS__CLIENT_CERTIFICATE": "optional",
        "SEATRIAL_SERVING__TLS__METRICS": "true",
        "SEATRIAL_SERVING__ACCESS__FILE": str(access),
        "SEATRIAL_SERVING__MANAGEMENT_PORT": "0",
        "SEATRIAL_SERVING__REPOSITORY_CONTROL": "true",
        "SEATRIAL_SERVING__ENGINES__COUNT": "1",
        "SEATRIAL_SERVING__LIMITS__RECEIVE_S": "4",
    }
    worker = authority.issue("somebody", x509.UniformResourceIdentifier("spiffe://here/worker"))
    with serving(LinearBundle().write(folder).path, place=folder / "s", environment=environment) as server:
        yield Secured(server, authority, worker, folder)


def inputs() -> list[triton_grpc.InferInput]:
    tensor = triton_grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array(X, np.float32))
    return [tensor]


def test_a_client_certificate_says_who_asks_over_rest_and_grpc(secured: Secured) -> None:
    with secured.client(secured.ours) as client:
        for _ in range(3):  # once parsed, then remembered
            assert client.post(secured.url(INFER), json=BODY).json()["outputs"][0]["data"] == TRUTH
        assert client.get(secured.url("/v2/models/linear")).status_code == 403
    with secured.triton(secured.ours) as client:
        assert client.infer("linear", inputs()).as_numpy("y")[0].tolist() == TRUTH
    until(lambda: {record.get("caller") for record in secured.server.log()} >= {"certificate:spiffe://here/worker"})


def test_a_head_that_is_remembered_is_not_for_the_next_connection(secured: Secured) -> None:
    """The bytes are the same, the certificate is not."""
    with secured.client(secured.ours) as client:
        request = client.build_request("POST", secured.url(INFER), json=BODY)
        assert [client.send(request).status_code for _ in range(2)] == [200, 200]
    for other in (None, secured.authority.issue("stranger")):
        with secured.client(other) as client:
            assert client.send(request).status_code == 401


def test_without_a_certificate_only_health_is_told(secured: Secured) -> None:
    with secured.client() as client:
        assert client.post(secured.url(INFER), json=BODY).status_code == 401
        assert client.get(secured.url("/v2/health/ready")).status_code == 200
    with secured.triton() as client:
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException) as told:
            client.infer("linear", inputs())
    assert "UNAUTHENTICATED" in str(told.value.status())


def test_a_certificate_of_another_authority_is_refused_in_the_handshake(secured: Secured, tmp_path: Path) -> None:
    forged = Authority(tmp_path).issue("operator", x509.UniformResourceIdentifier("spiffe://here/worker"))
    with secured.client(forged) as client, pytest.raises(httpx.TransportError):
        client.post(secured.url(INFER), json=BODY)


def test_management_is_for_whom_it_was_given_to(secured: Secured) -> None:
    where = secured.server.management
    with secured.client(secured.ours) as client:
        assert client.post(secured.url("/v2/repository/models/linear/load", where=where)).status_code == 403
    with secured.client(secured.authority.issue("operator")) as client:
        assert client.post(secured.url("/v2/repository/models/linear/load", where=where), timeout=60).status_code == 200
        assert client.get(secured.url("/v2/models/linear")).status_code == 200
        assert client.post(secured.url(INFER), json=BODY).status_code == 403
    assert "'certificate:operator' loads or unloads the model 'linear'" in secured.server.err.read_text()


def test_tritonclient_over_https(secured: Secured) -> None:
    with triton_http.InferenceServerClient(
        secured.server.http,
        ssl=True,
        ssl_options={
            "ca_certs": str(secured.authority.certificate),
            "certfile": str(secured.ours.certificate),
            "keyfile": str(secured.ours.key),
        },
    ) as client:
        tensor = triton_http.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array(X, np.float32))
        assert client.infer("linear", [tensor]).as_numpy("y")[0].tolist() == TRUTH


def test_our_own_commands_show_a_key_and_trust_an_authority(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = grant(secured.folder / "access.json", "operations")
    monkeypatch.setenv("SEATRIAL_SERVER_CA", str(secured.authority.certificate))
    rest, grpc = secured.url(""), f"https://{secured.server.grpc}"

    def told() -> Answer:
        return status.ask(rest, "linear", load_settings().credentials)

    assert "401" in told().error
    monkeypatch.setenv("SEATRIAL_API_KEY", made.key)
    until(lambda: told().version == "1")
    for url, protocol in ((rest, "rest"), (grpc, "grpc")):
        load = ("bench", url, "--model", "linear", "--protocol", protocol, "-c", 1, "-s", 0.1, "--json")
        put_on = type_seatrial(*load, monkeypatch=monkeypatch, capsys=capsys)
        assert (put_on.code, list(json.loads(put_on.out)["outcomes"])) == (0, ["ok"]), put_on
    asked = ("conformance", rest, "--grpc", grpc, "--model", "linear", "--only", "infer.*", "--json")
    judged = type_seatrial(*asked, monkeypatch=monkeypatch, capsys=capsys)
    assert judged.code == 0, judged
    assert made.key not in judged.out + judged.err
    monkeypatch.delenv("SEATRIAL_SERVER_CA")
    assert "CERTIFICATE_VERIFY_FAILED" in told().error


def test_metrics_are_told_over_tls_where_that_is_wanted(secured: Secured) -> None:
    with secured.client() as client:
        assert "seatrial_ready 1.0" in client.get(secured.url("/metrics", where=secured.server.metrics_address)).text


@pytest.mark.parametrize("port", ["http", "grpc", "management", "metrics_address"])
def test_who_does_not_speak_tls_or_an_old_one_gets_nothing(secured: Secured, port: str) -> None:
    address = getattr(secured.server, port).split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=20) as plain:
        plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        with suppress(ConnectionError):
            received = plain.recv(4096)
        assert b"live" not in received
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(secured.authority.certificate)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.minimum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((address[0], int(address[1])), timeout=20) as raw,
        pytest.raises(OSError, match=r"(?i)alert|reset|version|eof"),
    ):
        old.wrap_socket(raw, server_hostname="localhost")


def test_who_never_ends_a_handshake_keeps_nobody_from_being_looked_after(secured: Secured) -> None:
    """Connections that are not made yet are no business of the sweep, which ends others that are too slow."""
    host, port = secured.server.grpc.split(":")
    context = ssl.create_default_context(cafile=str(secured.authority.certificate))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=20),
        socket.create_connection((host, int(port)), timeout=30) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as slow,
    ):
        slow.sendall(b"PRI")
        while slow.recv(4096):  # its settings, then that a frame took too long, then the end
            pass


def test_each_port_says_what_it_speaks(secured: Secured) -> None:
    for port, protocol in (("http", "http/1.1"), ("grpc", "h2"), ("management", "http/1.1")):
        context = ssl.create_default_context(cafile=str(secured.authority.certificate))
        context.set_alpn_protocols(["h2", "http/1.1"])
        host, number = getattr(secured.server, port).split(":")
        with (
            socket.create_connection((host, int(number)), timeout=20) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as speaking,
        ):
            assert speaking.selected_alpn_protocol() == protocol


def test_certificates_are_renewed_without_a_restart(secured: Secured, tmp_path: Path) -> None:
    """Last in this file: from here on the server's certificate is another authority's."""
    other = Authority(tmp_path / "other")

    def trusted_by(authority: Authority) -> bool:
        try:
            with secured.client(trusting=authority.certificate) as client:
                return client.get(secured.url("/v2/health/live")).status_code == 200
        except httpx.ConnectError:
            return False

    with secured.client(secured.ours) as staying:
        assert staying.post(secured.url(INFER), json=BODY).status_code == 200
        (secured.folder / "server.pem").write_text("half")
        until(lambda: trusted_by(secured.authority) and "TLS cannot be had" in secured.server.err.read_text())
        assert not trusted_by(other)
        put(other.issue("server"), secured.folder)
        until(lambda: trusted_by(other))
        assert not trusted_by(secured.authority)
        assert staying.post(secured.url(INFER), json=BODY).status_code == 200, "an open connection stays"


def test_a_server_without_its_certificate_does_not_start(tmp_path: Path) -> None:
    made = Authority(tmp_path).issue("a")
    other = Authority(tmp_path / "b").issue("b")
    for certificate, key in ((tmp_path / "none", made.key), (made.certificate, other.key), (made.key, made.key)):
        with pytest.raises(InvalidSettings, match=r"serving\.tls"):
            listening(Tls(certificate=certificate, key=key), speaks="h2")
