"""The conformance kit: what it finds of our own server, of the other runtimes, and of servers with one fault each."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.conformance import cells
from seatrial.errors import InvalidSource, NotReady
from seatrial_serving.conformance.check import CHECKS, Kind, Verdict
from seatrial_serving.conformance.report import Report, Row, brief
from seatrial_serving.conformance.suite import GONE, Plan, judge
from tests.commands import type_seatrial
from tests.servers import Server, serving
from tests.serving import faulty
from tests.serving.models import LinearBundle, everything_onnx
from tests.serving.right import Right, Stage, listening
from tests.serving.runtimes import serving_with

pytestmark = pytest.mark.xdist_group("conformance")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("ours")
    bundle = LinearBundle(version="3", labels=("a", "b", "c")).write(place / "store")
    with serving(bundle.path, everything_onnx(place / "everything.onnx"), place=place / "server") as running:
        yield running


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with listening() as opened:
        yield opened


def found(report: Report, verdict: Verdict) -> dict[Kind, list[str]]:
    """The ids of the checks with that verdict, by wire."""
    return {
        kind: [row.check.id for row in report.rows if kind in row.findings and row.findings[kind].verdict is verdict]
        for kind in Kind
    }


def only(report: Report) -> Row:
    [row] = report.rows
    return row


# The three runtimes


def test_our_own_server_does_everything_that_it_says(ours: Server) -> None:
    report = judge(Plan(url=ours.http, grpc=ours.grpc, model="linear", hostile=True))
    assert found(report, Verdict.FAILS) == {Kind.REST: [], Kind.GRPC: []}
    assert_as_documented("Seatrial", report)


def test_and_with_every_datatype(ours: Server) -> None:
    report = judge(Plan(url=ours.http, grpc=ours.grpc, model="everything", hostile=True))
    assert found(report, Verdict.FAILS) == {Kind.REST: [], Kind.GRPC: []}
    held = found(report, Verdict.HOLDS)
    datatypes = {check for check in CHECKS if check.startswith("datatypes.")} - {"datatypes.bf16"}
    assert datatypes <= set(held[Kind.REST])
    assert datatypes | {"infer.order", "outputs.order", "errors.missing_input"} <= set(held[Kind.GRPC])


NOT_400 = [
    "errors.negative_size", "errors.data_short", "errors.data_long", "errors.not_json", "errors.not_an_object",
    "errors.no_field_inputs", "errors.cut_off", "errors.null", "errors.text_for_number", "errors.object_for_number",
    "binary.head_too_short",
]  # fmt: skip
"""What Triton answers with 500, in so many words its own mistake."""
TAKEN = ["errors.nan", "robust.utf8"]
"""What Triton takes, and answers with JSON that is none."""


@pytest.mark.slow
def test_triton_does_nearly_everything(tmp_path: Path) -> None:
    """Without hostile checks: the deep JSON would end it."""
    with serving_with("triton", LinearBundle(version="3").write(tmp_path / "store").path, place=tmp_path) as triton:
        report = judge(Plan(url=triton.http, grpc=triton.grpc, model="linear"))
    failing = found(report, Verdict.FAILS)
    assert set(failing[Kind.REST]) == {*NOT_400, *TAKEN}
    assert failing[Kind.GRPC] == ["robust.raw_count"]
    assert_as_documented("Triton", report)
    [stream] = [row for row in report.rows if row.check.id == "stream.answers"]
    assert stream.findings[Kind.GRPC].note == "ModelStreamInferResponse"


@pytest.mark.slow
def test_bentoml_serves_the_protocol_but_for_the_server_s_metadata(tmp_path: Path) -> None:
    with serving_with("bento", LinearBundle(version="3").write(tmp_path / "store").path, place=tmp_path) as bento:
        report = judge(Plan(url=bento.http, model="linear"))
    assert found(report, Verdict.FAILS)[Kind.REST] == ["metadata.server"]
    assert_as_documented("BentoML", report)


def assert_as_documented(runtime: str, report: Report) -> None:
    documented = cells(runtime)
    for row in report.applicable:
        assert documented[row.check.id] == list(map(brief, row.verdicts)), f"{row.check.id}: make conformance"


# Servers that do one thing wrong


def test_the_server_that_does_everything_right_fails_nothing(stage: Stage) -> None:
    stage.playing = Right()
    report = judge(Plan(url=stage.http_address, grpc=stage.grpc_address, hostile=True))
    assert report.model == "shifted", "the first of its index"
    assert found(report, Verdict.FAILS) == {Kind.REST: [], Kind.GRPC: []}
    assert set(found(report, Verdict.HOLDS)[Kind.REST]) >= {fault.caught_by for fault in faulty.OVER_REST}
    assert set(found(report, Verdict.HOLDS)[Kind.GRPC]) >= {fault.caught_by for fault in faulty.OVER_GRPC}


@pytest.mark.parametrize("fault", faulty.OVER_REST)
def test_a_fault_is_caught_by_the_check_that_names_it(stage: Stage, fault: type[Right]) -> None:
    stage.playing = fault()
    row = only(judge(Plan(url=stage.http_address, model="shifted", only=fault.caught_by)))
    finding = row.findings[Kind.REST]
    assert finding.verdict is Verdict.FAILS
    assert fault.words in finding.found
    assert finding.expected


@pytest.mark.parametrize("fault", faulty.OVER_GRPC)
def test_a_fault_of_grpc_is_caught_there(stage: Stage, fault: type[Right]) -> None:
    stage.playing = fault()
    row = only(judge(Plan(url=stage.http_address, grpc=stage.grpc_address, model="shifted", only=fault.caught_by)))
    finding = row.findings[Kind.GRPC]
    assert finding.verdict is Verdict.FAILS
    assert fault.words in finding.found


@pytest.mark.parametrize("fault", [faulty.BlamesItself, faulty.TakesAnything])
@pytest.mark.parametrize("area", ["errors.*", "hostile.*"])
def test_every_mistake_that_is_not_refused_is_seen(stage: Stage, fault: type[Right], area: str) -> None:
    stage.playing = fault()
    report = judge(Plan(url=stage.http_address, model="shifted", only=area, hostile=True))
    assert {row.check.id for row in report.rows if not row.fails} <= {"hostile.left"}, "which is no mistake"


def test_a_model_that_answers_at_random_is_not_compared(stage: Stage) -> None:
    stage.playing = faulty.AnswersAtRandom()
    report = judge(Plan(url=stage.http_address, model="shifted"))
    assert found(report, Verdict.FAILS)[Kind.REST] == []
    assert "infer.answer" in found(report, Verdict.HOLDS)[Kind.REST]
    [twice] = [row for row in report.rows if row.check.id == "infer.twice"]
    assert "in different ways" in twice.findings[Kind.REST].note


def test_an_input_that_is_too_large_is_not_made_up(stage: Stage) -> None:
    stage.playing = faulty.WantsTooMuch()
    finding = only(judge(Plan(url=stage.http_address, only="infer.answer"))).findings[Kind.REST]
    assert finding.verdict is Verdict.NOT_APPLICABLE
    assert "give one with --samples" in finding.note


def test_once_the_server_is_gone_nothing_more_is_judged() -> None:
    with listening() as stage:
        stage.playing = faulty.Vanishes(stage)
        report = judge(Plan(url=stage.http_address, model="shifted"))
    assert found(report, Verdict.FAILS)[Kind.REST] == ["health.unknown"]
    after = [row for row in report.rows if row.check.id.startswith(("metadata.", "infer.", "errors."))]
    assert {row.findings[Kind.REST].note for row in after} == {GONE}


# The command


def test_the_command_says_what_failed_and_ends_with_3(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.playing = faulty.EchoesAnotherId()
    typed = type_seatrial("conformance", stage.http_address, "--only", "id.*", monkeypatch=monkeypatch, capsys=capsys)
    assert typed.code == 3
    assert re.search(r"id\.echoed +fails", typed.out)
    assert "found     id '43'\n  expected  '42'" in typed.out
    typed = type_seatrial(
        "conformance", stage.http_address, "--only", "id.*", "--json", monkeypatch=monkeypatch, capsys=capsys
    )
    assert typed.code == 3
    said = json.loads(typed.out)
    assert not said["holds"]
    assert said["checks"][0]["REST"] == {"verdict": "fails", "found": "id '43'", "expected": "'42'"}


def test_advice_counts_only_where_it_is_strict(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.playing = faulty.CallsJsonText()
    arguments = ("conformance", stage.http_address, "--model", "shifted", "--only", "infer.media_type")
    assert type_seatrial(*arguments, monkeypatch=monkeypatch, capsys=capsys).code == 0
    assert type_seatrial(*arguments, "--strict", monkeypatch=monkeypatch, capsys=capsys).code == 3


def test_samples_are_what_is_asked_with(stage: Stage, tmp_path: Path) -> None:
    stage.playing = Right()
    samples = tmp_path / "request.json"
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1, 2, 3, 4, 5, 6, 7, 8]},
        {"name": "shift", "datatype": "INT64", "shape": [2, 1], "data": [100, 200]},
    ]
    samples.write_text(json.dumps({"inputs": inputs}))
    report = judge(Plan(url=stage.http_address, model="shifted", samples=samples))
    assert found(report, Verdict.FAILS)[Kind.REST] == []
    samples.write_text(json.dumps({"inputs": inputs[:1]}))
    with pytest.raises(InvalidSource, match=re.escape("the samples are of ['x'], but the inputs of 'shifted' are")):
        judge(Plan(url=stage.http_address, model="shifted", samples=samples))
    samples.write_text("[1, 2]")
    with pytest.raises(InvalidSource, match="is not an inference request in JSON"):
        judge(Plan(url=stage.http_address, model="shifted", samples=samples))


def test_what_cannot_be_judged_is_said(ours: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(NotReady, match="does not answer over REST"):
        judge(Plan(url=nobody))
    with pytest.raises(NotReady, match="does not answer over gRPC"):
        judge(Plan(url=ours.http, grpc=nobody))
    with pytest.raises(InvalidSource, match="no check is called 'no such'"):
        judge(Plan(url=ours.http, only="no such"))
