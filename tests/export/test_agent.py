"""The agent's door, and what it does with whoever knocks: strangers, other versions, bodies that lie, two at once."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import pytest

from seatrial.bundle.manifest import MANIFEST, Manifest
from seatrial.credentials import Credentials
from seatrial.errors import AgentLost, AgentRefused, InvalidSettings, PortInUse
from seatrial.settings import Settings
from seatrial_export import package
from seatrial_export.remote import asking
from seatrial_export.remote.agent import Agent
from seatrial_export.remote.client import Connection, check_address
from seatrial_export.remote.depot import Depot
from seatrial_export.remote.door import MOST_CONNECTIONS, Door
from seatrial_export.remote.wire import CODE, Errand, Lease, code
from tests.export.agents import SHOWN, TOKEN, Near, far, near
from tests.serving.certificates import Authority
from tests.serving.models import SIGNATURE, LinearBundle

CONTENT = b"what somebody sends"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Near]:
    with near(tmp_path / "agent-home", file_mb=0.001) as found:
        yield found


def message(answer: httpx.Response) -> str:
    return str(answer.json()["message"])


# Who may come in


@pytest.mark.parametrize(
    "headers",
    [
        {CODE: code()},
        {"authorization": "Bearer", CODE: code()},
        {"authorization": f"Bearer {TOKEN}x", CODE: code()},
        {"authorization": f"Bearer {TOKEN[:-1]}", CODE: code()},
        {"authorization": f"Basic {TOKEN}", CODE: code()},
        {"x-api-key": TOKEN, CODE: code()},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "about"), ("PUT", f"files/{DIGEST}"), ("POST", "errands/x")])
def test_nobody_gets_anything_without_the_token(headers: dict[str, str], method: str, path: str, agent: Near) -> None:
    answer = agent.ask(method, path, content=CONTENT if method == "PUT" else None, headers=headers)
    assert answer.status_code == 401
    assert "SEATRIAL_API_KEY" in message(answer)
    assert TOKEN not in answer.text
    assert agent.files == []


def test_an_export_with_other_code_is_refused_and_told_which_code_is_where(agent: Near) -> None:
    answer = agent.ask("GET", "about", headers={**SHOWN, CODE: "0.0.9+0123456789abcdef"})
    assert answer.status_code == 412
    assert f"this agent runs Seatrial {code()}, the export 0.0.9+0123456789abcdef" in message(answer)


def test_a_client_tells_why_it_was_refused(agent: Near) -> None:
    with pytest.raises(AgentRefused, match=f"{agent.url}: the token is wrong"):
        Connection(agent.url, Credentials(key="another"), holder="a test")


def test_who_is_no_agent_or_not_there_is_told_so(tmp_path: Path) -> None:
    with near(tmp_path / "gone") as gone:
        url = gone.url
    with pytest.raises(AgentLost, match=f"the agent at {url} was lost at GET about: .*refused"):
        Connection(url, Credentials(key=TOKEN), holder="a test")


@pytest.mark.parametrize("short", ["", "x" * 23, "with a blank in its middle, though long"])
def test_an_agent_does_not_start_without_a_token_that_is_worth_it(short: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, export={"agent": {"port": 0, "token": short}})
    with pytest.raises(InvalidSettings, match="needs a token"):
        Door(Agent(settings), settings)


def test_the_token_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with near(tmp_path / "home", token=None, token_file=tmp_path / "token") as agent:
        assert agent.ask("GET", "about").status_code == 200
        assert agent.ask("GET", "about", headers={CODE: code()}).status_code == 401


def test_the_token_never_crosses_a_network_in_the_clear(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, export={"agent": {"host": "0.0.0.0", "port": 0, "token": TOKEN}})
    with pytest.raises(InvalidSettings, match=r"set serving.tls.certificate and serving.tls.key"):
        Door(Agent(settings), settings)
    for url in ("http://gpu.example.com:9500", "http://192.0.2.1:9500"):
        with pytest.raises(InvalidSettings, match="in the clear"):
            check_address(url)
    for url in ("gpu.example.com:9500", "ftp://gpu.example.com", "https://me:secret@gpu.example.com", "https://"):
        with pytest.raises(InvalidSettings, match="is no address of an agent"):
            check_address(url)


def test_with_a_certificate_it_speaks_tls_and_a_client_believes_whom_it_is_told_to(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("server")
    settings = Settings(
        home=tmp_path / "home",
        serving={"tls": {"certificate": pair.certificate, "key": pair.key}},
        export={"agent": {"port": 0, "token": TOKEN}},
    )
    with Door(Agent(settings), settings) as door:
        answering = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.01})
        answering.start()
        try:
            assert door.url.startswith("https://127.0.0.1:")
            connection = Connection(door.url, Credentials(key=TOKEN, ca=authority.certificate), holder="a test")
            assert connection.send(pair.certificate) == hashlib.sha256(pair.certificate.read_bytes()).hexdigest()
            connection.close()
            other = Authority(tmp_path / "other")
            with pytest.raises(AgentLost, match="CERTIFICATE_VERIFY_FAILED"):
                Connection(door.url, Credentials(key=TOKEN, ca=other.certificate), holder="a test")
        finally:
            door.shutdown()
            answering.join()


def test_a_port_that_is_taken_is_told(agent: Near, tmp_path: Path) -> None:
    port = int(agent.url.rpartition(":")[2])
    settings = Settings(home=tmp_path / "other", export={"agent": {"port": port, "token": TOKEN}})
    with pytest.raises(PortInUse, match=f"127.0.0.1:{port}"):
        Door(Agent(settings), settings)


def test_of_too_many_connections_the_last_is_closed_and_the_others_are_answered(agent: Near) -> None:
    host, _, port = agent.url.removeprefix("http://").partition(":")
    held = [socket.create_connection((host, int(port)), timeout=30) for _ in range(MOST_CONNECTIONS)]
    try:
        for each in held:  # so that each has its thread
            each.sendall(b"GET /v1/about HTTP/1.1\r\n")
        with socket.create_connection((host, int(port)), timeout=30) as late:
            assert late.recv(1) == b""
        held[0].sendall("".join(f"{name}: {value}\r\n" for name, value in SHOWN.items()).encode() + b"\r\n")
        assert held[0].recv(12) == b"HTTP/1.1 200"
    finally:
        for each in held:
            each.close()


# Files


def test_a_file_is_taken_once_and_given_back_as_it_came(agent: Near, tmp_path: Path) -> None:
    assert agent.ask("HEAD", f"files/{DIGEST}").status_code == 404
    assert agent.ask("PUT", f"files/{DIGEST}", content=CONTENT).status_code == 204
    assert agent.ask("HEAD", f"files/{DIGEST}").status_code == 204
    assert agent.ask("GET", f"files/{DIGEST}").content == CONTENT
    connection = agent.connect()
    (tmp_path / "same").write_bytes(CONTENT)
    assert connection.send(tmp_path / "same") == DIGEST
    connection.fetch(DIGEST, tmp_path / "back")
    connection.close()
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert agent.files == [DIGEST]


def test_other_bytes_than_the_digest_says_are_refused_and_not_kept(agent: Near) -> None:
    answer = agent.ask("PUT", f"files/{DIGEST}", content=b"what somebody sendt")
    assert (answer.status_code, agent.files) == (400, [])
    assert f"not {DIGEST}: they were changed" in message(answer)


def test_half_a_file_is_refused_and_not_kept(agent: Near) -> None:
    answer = raw(agent, f"PUT /v1/files/{DIGEST}", {"content-length": "19"}, body=CONTENT[:7])
    assert (answer.status, answer.message) == (400, "7 of 19 bytes came")
    assert agent.files == []


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(agent: Near) -> None:
    answer = raw(agent, f"PUT /v1/files/{DIGEST}", {"content-length": str(10**15)}, body=b"x" * 10)
    assert answer.status == 413
    assert "at most 0.001 are taken (export.agent.file_mb)" in answer.message
    assert agent.files == []


def test_who_sends_too_much_gets_to_read_why(agent: Near) -> None:
    answer = agent.ask("PUT", f"files/{DIGEST}", content=b"x" * 2**22)
    assert answer.status_code == 413


def test_a_file_for_which_the_disk_has_no_room_is_refused(tmp_path: Path) -> None:
    with near(tmp_path, file_mb=1e12) as agent:
        answer = raw(agent, f"PUT /v1/files/{DIGEST}", {"content-length": str(10**17)}, body=b"")
        assert answer.status == 507
        assert "are free on the agent's disk" in answer.message


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "a body needs one Content-Length"),
        ({"content-length": "-1"}, "a body needs one Content-Length"),
        ({"content-length": "1e3"}, "a body needs one Content-Length"),
        ({"transfer-encoding": "chunked"}, "no other transfer encoding is taken"),
    ],
)
def test_a_body_says_how_long_it_is(headers: dict[str, str], words: str, agent: Near) -> None:
    answer = raw(agent, f"PUT /v1/files/{DIGEST}", headers, body=b"0\r\n\r\n")
    assert answer.status == 400
    assert words in answer.message


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "", "x", DIGEST.upper(), f"{DIGEST}/x", "%2e%2e%2fx"])
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
def test_a_file_is_named_by_its_digest_and_nothing_else(name: str, method: str, agent: Near) -> None:
    answer = raw(agent, f"{method} /v1/files/{name}", {"content-length": "1"}, body=b"x")
    assert answer.status == 400
    assert agent.files == []


def test_what_was_not_wanted_for_longest_makes_room(tmp_path: Path) -> None:
    depot = Depot(place=tmp_path / "files", most_bytes=100, keep_bytes=25)
    made = []
    for number in range(3):
        (tmp_path / "made").write_bytes(b"x" * 10 + bytes([number]))
        made.append(depot.take(tmp_path / "made"))
        depot.path(made[0])  # it is wanted each time
    os.utime(depot.place / made[1], (0, 0))
    depot.make_room()
    assert [depot.has(digest) for digest in made] == [True, False, True]


# Errands


def errand(agent: Near, **fields: object) -> httpx.Response:
    """Of a lease that holds."""
    lease = msgspec.json.decode(agent.ask("POST", "leases", content=b'{"name":"a test"}').content, type=Lease)
    given = {
        "step": "package",
        "job": package.Job(program="program.pt2", engine="aotinductor", signature=SIGNATURE),
        **fields,
    }
    try:
        return agent.ask("POST", f"errands/{lease.id}", content=msgspec.json.encode(given))
    finally:
        agent.ask("DELETE", f"leases/{lease.id}")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"step": "shell"}, "there is no step 'shell'; there are package, plan, prove, time, ask"),
        ({"step": "os.system"}, "there is no step 'os.system'"),
        ({"job": {"program": 5}}, "the job is none of the step 'package'"),
        ({}, "the job names 'program.pt2', which the errand does not bring"),
        (
            {"job": package.Job(program="/etc/passwd", engine="aotinductor", signature=SIGNATURE)},
            "the job names '/etc/passwd'",
        ),
        ({"files": {"program.pt2": "0" * 64}}, f"there is no file {'0' * 64} here; send it first"),
        ({"files": {"program.pt2": "../x"}}, "'../x' is no SHA-256 of a file"),
        ({"files": {"program.pt2": DIGEST, "../../x": DIGEST}}, "'../../x' is no name of a file in an errand"),
        ({"files": {"program.pt2": DIGEST, "/tmp/x": DIGEST}}, "'/tmp/x' is no name of a file in an errand"),
        ({"files": {"program.pt2": DIGEST}, "bundles": {"..": DIGEST}}, "'..' is no name of a file in an errand"),
    ],
)
def test_an_errand_that_is_none_is_refused_before_anything_is_run(
    fields: dict[str, object], words: str, agent: Near
) -> None:
    agent.ask("PUT", f"files/{DIGEST}", content=CONTENT)
    answer = errand(agent, **fields)
    assert answer.status_code == 400
    assert words in message(answer)
    assert agent.files == [DIGEST], "nothing was left, here or outside"


def test_a_manifest_cannot_name_a_way_out_of_its_bundle(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path / "bundles")
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    manifest["files"]["../../../outside"] = manifest["files"].pop("model.onnx")
    manifest["graphs"]["main"] = "../../../outside"
    evil = json.dumps(manifest).encode()
    with near(tmp_path / "home") as agent:
        digest = hashlib.sha256(evil).hexdigest()
        agent.ask("PUT", f"files/{digest}", content=evil)
        answer = errand(agent, step="ask", job=asking.Job(bundle="bundle", threads=1), bundles={"bundle": digest})
        assert answer.status_code == 400
        assert "outside" in message(answer)
        assert agent.files == [digest]
    honest = Manifest.decode((bundle.path / MANIFEST).read_bytes(), where="the honest one")
    assert "model.onnx" in honest.files


def test_a_message_beyond_the_limit_is_refused_before_it_is_read(agent: Near) -> None:
    answer = raw(agent, "POST /v1/leases", {"content-length": str(2**30)}, body=b"{")
    assert answer.status == 413


# One export at a time


def test_a_second_export_is_told_who_has_the_agent(agent: Near) -> None:
    first = agent.connect("models:/digits-cnn/1 from a laptop")
    with pytest.raises(AgentRefused, match="works for models:/digits-cnn/1 from a laptop; it takes one export"):
        agent.connect("models:/other/1")
    first.close()
    agent.connect("models:/other/1").close()


def test_a_lease_ends_by_silence_and_then_is_nobodys(agent: Near) -> None:
    lease = msgspec.json.decode(agent.ask("POST", "leases", content=b'{"name":"one"}').content, type=Lease)
    agent.now += lease.lasts_s - 1
    assert agent.ask("PUT", f"leases/{lease.id}").status_code == 204
    agent.now += lease.lasts_s - 1
    assert agent.ask("POST", "leases", content=b'{"name":"two"}').status_code == 409
    agent.now += 2
    assert agent.ask("POST", "leases", content=b'{"name":"two"}').status_code == 201
    for method, path in (("PUT", "leases"), ("POST", "errands")):
        body = msgspec.json.encode(Errand(step="ask", job=msgspec.Raw(b"{}")))
        answer = agent.ask(method, f"{path}/{lease.id}", content=body)
        assert answer.status_code == 403
        assert "this lease has ended" in message(answer)
    assert agent.ask("DELETE", f"leases/{lease.id}").status_code == 204
    assert agent.ask("POST", "leases", content=b'{"name":"three"}').status_code == 409, "the second holds it still"


@pytest.mark.slow
def test_a_second_agent_in_the_same_home_is_refused_and_the_first_ends_in_peace(tmp_path: Path) -> None:
    with far(tmp_path / "far") as agent:
        variables = {"SEATRIAL_HOME": str(agent.home), "SEATRIAL_EXPORT__AGENT__TOKEN": TOKEN}
        second = subprocess.run(
            [sys.executable, "-m", "seatrial", "agent", "--port", "0"],
            env=os.environ | variables, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert second.returncode == 1
        assert "another agent has the home" in second.stderr


class Answered(NamedTuple):
    status: int
    message: str


def raw(agent: Near, line: str, headers: dict[str, str], *, body: bytes) -> Answered:
    """What is answered to exactly this, after which the sender has no more to say."""
    host, _, port = agent.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in {"host": "x", **SHOWN, **headers}.items())
        connection.sendall(f"{line} HTTP/1.1\r\n{head}\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    start, _, rest = answer.partition(b"\r\n\r\n")
    found: dict[str, object] = json.loads(rest) if rest else {"message": ""}
    return Answered(status=int(start.split()[1]), message=str(found["message"]))
