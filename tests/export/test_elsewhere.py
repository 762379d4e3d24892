"""An export whose targets are verified and timed by an agent, over loopback: it ends as one would that measures here."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seatrial.bundle import EngineSpec
from seatrial.bundle.evidence import Evidence
from seatrial.credentials import Credentials
from seatrial.engines import obstacle
from seatrial.errors import AgentLost, AgentRefused, ConversionFailed, InvalidSettings
from seatrial.machine import this_machine
from seatrial.registry import ModelRef
from seatrial.settings import Settings
from seatrial_export import package
from seatrial_export.candidate import AOTI_CPU, CANDIDATES, ONNX_WEB, OPENVINO_CPU, TARGETS, Verdict
from seatrial_export.choose import Budget
from seatrial_export.export import Exported, attempt, export
from seatrial_export.register import register
from seatrial_export.remote.client import Connection
from seatrial_export.remote.prove import Asked
from seatrial_export.remote.reach import On, assigned
from seatrial_export.remote.wire import pack, unpack
from seatrial_export.report import Row
from seatrial_export.request import Request
from seatrial_export.samples import digest_of, write_arrays
from seatrial_export.trial import ask_source
from seatrial_serving.engines.proof import prove
from seatrial_training.data import Split
from tests.conditions import until
from tests.digits import ExportedDigits
from tests.export.agents import TOKEN, Far, far, near
from tests.export.models import linear_source, some_rows
from tests.serving.models import SIGNATURE, linear_onnx
from tests.tools import absent

FLOAT, DYNAMIC, STATIC, *_ = CANDIDATES
REF = ModelRef(name="linear", version="1")
HTTP = "http://127.0.0.1:9500"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    with far(tmp_path_factory.mktemp("far") / "home") as found:
        yield found


@pytest.fixture
def settings(home: Path, tmp_path: Path) -> Settings:
    settings = Settings(home=home, api_key=TOKEN, export={"measure_s": 0.1, "threads": 1, "keep_mb": 0})
    register(str(linear_onnx(tmp_path / "linear.onnx")), name="linear", settings=settings)
    return settings


# What crosses the wire


def test_questions_cross_the_wire_as_they_are(tmp_path: Path) -> None:
    questions = ask_source(linear_source(tmp_path))
    pack(Asked(exam=questions.exam, held_out=None), tmp_path / "packed.npz")
    found = unpack(tmp_path / "packed.npz", Asked)
    assert digest_of((found.exam, found.held_out)) == questions.digest
    split = Split(inputs=some_rows(4), labels=np.array([0, 1, 2, 0]))
    pack(split, tmp_path / "split.npz")
    again = unpack(tmp_path / "split.npz", Split)
    np.testing.assert_array_equal(again.labels, split.labels)
    assert again.labels.dtype == split.labels.dtype


# Which target is measured where


def test_a_place_is_for_one_target_or_for_all_that_are_left() -> None:
    there, labels = On.parse(f"{AOTI_CPU}={HTTP}"), On.parse("gpu=a100,topology.kubernetes.io/zone=x")
    assert (there.target, there.where) == (AOTI_CPU, HTTP)
    assert (labels.target, labels.is_address) == ("", False)
    assert assigned([labels, there], [OPENVINO_CPU, AOTI_CPU]) == {AOTI_CPU: HTTP, OPENVINO_CPU: labels.where}
    assert assigned([there], [OPENVINO_CPU, AOTI_CPU]) == {AOTI_CPU: HTTP}
    assert assigned([], TARGETS) == {}


@pytest.mark.parametrize(
    ("on", "words"),
    [
        (["http://gpu.example.com:9500"], "in the clear"),
        (["gpu"], "write an agent's address"),
        (["gpu=a 100"], "write an agent's address"),
        (["=x"], "write an agent's address"),
        ([f"{AOTI_CPU}={HTTP}"], "aoti-cpu is not exported; add --target aoti-cpu"),
        ([HTTP, "http://127.0.0.1:1"], "no target is left to be measured there"),
        ([f"onnx-cpu={HTTP}", "onnx-cpu=http://127.0.0.1:1"], "says twice where onnx-cpu is measured"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_done(on: list[str], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        Request(ref=REF, on=tuple(map(On.parse, on)))


@pytest.mark.usefixtures("settings")
def test_an_agent_that_is_not_there_or_does_not_take_us_is_told_at_once(settings: Settings, tmp_path: Path) -> None:
    with near(tmp_path / "near") as agent:
        request = Request(ref=REF, on=(On(where=agent.url),))
        with pytest.raises(AgentRefused, match="the token is wrong"):
            attempt(request, settings.model_copy(update={"api_key": None}))
        busy = agent.connect("models:/other/3 from elsewhere")
        with pytest.raises(AgentRefused, match="works for models:/other/3 from elsewhere"):
            attempt(request, settings)
        busy.close()
    with pytest.raises(AgentLost, match="refused"):
        attempt(request, settings)


# A whole export


def row(exported: Exported, name: str) -> Row:
    [found] = [each for each in exported.report.rows if each.name == name]
    return found


@pytest.mark.slow
def test_an_export_over_an_agent_finds_and_chooses_what_a_local_one_does(
    agent: Far, settings: Settings, tmp_path: Path
) -> None:
    write_arrays(tmp_path / "rows.npz", some_rows(400))
    request = Request(ref=REF, candidates=(FLOAT, DYNAMIC), samples=tmp_path / "rows.npz")
    here = export(request, settings)
    there = export(replace(request, on=(On(where=agent.url),)), settings)
    assert there.report.chosen == here.report.chosen == {"onnx-cpu": FLOAT.name}
    assert there.report.bundles == here.report.bundles, "where it was proved is not in what it answers"
    for ours, theirs in zip(here.report.rows, there.report.rows, strict=True):
        assert (theirs.verdict, theirs.quality, theirs.size_bytes) == (ours.verdict, ours.quality, ours.size_bytes)
        assert (theirs.on, ours.on) == (agent.url, "")
        assert theirs.agreement == ours.agreement
    chosen = row(there, FLOAT.name)
    assert chosen.throughput is not None
    assert chosen.throughput.rounds >= 15
    assert chosen.row_ms
    assert chosen.row_ms > 0
    assert there.report.elsewhere[agent.url].machine == this_machine()
    assert [each.variant for each in there.report.deltas] == [FLOAT.name]
    [bundle] = there.bundles.values()
    assert prove(bundle) == 8
    assert isinstance(bundle.evidence(), Evidence)
    page = Path(there.page.removeprefix("file://")).read_text()
    assert f"Measured on {agent.url}" in page
    assert agent.children() == [], "the agent has nothing running"
    assert not list((agent.home / "agent" / "errands").iterdir())


@pytest.mark.slow
def test_what_no_browser_here_can_run_is_proved_in_one_that_is_elsewhere(
    agent: Far, settings: Settings, with_web: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := obstacle(EngineSpec(name="onnxruntime-web")):
        absent(why)
    monkeypatch.setenv("PATH", str(tmp_path))
    ours = settings.export.model_copy(update={"web_runtime": with_web.web_runtime})
    request = Request(ref=REF, targets=(ONNX_WEB,))
    here = attempt(request, settings.model_copy(update={"export": ours}))
    assert row(here, f"{ONNX_WEB}-fp32").verdict is Verdict.UNVERIFIED
    there = export(replace(request, on=(On(where=agent.url),)), settings.model_copy(update={"export": ours}))
    assert there.report.chosen == {ONNX_WEB: f"{ONNX_WEB}-fp32"}
    assert row(there, f"{ONNX_WEB}-fp32").on == agent.url


@pytest.mark.slow
def test_when_the_agent_is_killed_only_its_targets_are_lost(settings: Settings, tmp_path: Path) -> None:
    with far(tmp_path / "far") as agent:

        def tell(subject: str, words: str) -> None:
            if (subject, words) == (FLOAT.name, f"verifying on {agent.url}"):
                agent.process.send_signal(signal.SIGKILL)
                agent.process.wait()

        request = Request(
            ref=REF,
            targets=("onnx-cpu", OPENVINO_CPU),
            candidates=tuple(each for each in CANDIDATES if not each.lossy),
            on=(On.parse(f"onnx-cpu={agent.url}"),),
        )
        exported = attempt(request, settings, tell=tell)
    assert exported.unmet == ("onnx-cpu",)
    assert exported.report.chosen == {OPENVINO_CPU: f"{OPENVINO_CPU}-fp32"}
    lost = row(exported, FLOAT.name)
    assert lost.verdict is Verdict.NOT_MEASURED
    assert lost.reason.startswith(f"the agent at {agent.url} was lost at")


@pytest.mark.slow
def test_a_contest_that_nobody_waits_for_is_killed_and_the_agent_is_free(settings: Settings, tmp_path: Path) -> None:
    """The export is gone while its variants are timed: no engine of it is left to be in the next one's way."""

    class Gone(Exception):
        pass

    with far(tmp_path / "far") as agent:

        def tell(_: str, words: str) -> None:
            if words.startswith("timed "):
                assert agent.children()
                raise Gone

        slow = settings.model_copy(update={"export": settings.export.model_copy(update={"measure_s": 60.0})})
        request = Request(ref=REF, candidates=(FLOAT,), on=(On(where=agent.url),), budget=Budget())
        with pytest.raises(Gone):
            attempt(request, slow, tell=tell)
        until(lambda: not agent.children(), within_s=30)
        Connection(agent.url, Credentials(key=TOKEN), holder="the next one").close()


@pytest.mark.slow
def test_a_child_of_the_agent_that_fails_leaves_its_log_with_the_export(agent: Far, tmp_path: Path) -> None:
    (tmp_path / "program.pt2").write_bytes(b"no program at all")
    connection = Connection(agent.url, Credentials(key=TOKEN), holder="a test")
    try:
        with pytest.raises(ConversionFailed) as failed:
            connection.run(
                "package",
                package.Job(program="program.pt2", engine="torch-export", signature=SIGNATURE),
                answer=package.Packaged,
                log=tmp_path / "logs" / "package.log",
                files={"program.pt2": tmp_path / "program.pt2"},
            )
    finally:
        connection.close()
    assert failed.value.reason.endswith(f"(on {agent.url})")
    assert "Traceback" in Path(failed.value.log).read_text()


@pytest.mark.slow
def test_digits_over_an_agent_have_the_verdicts_of_the_local_export(
    agent: Far, exported_digits: ExportedDigits, tmp_path: Path
) -> None:
    digits = exported_digits.copy(tmp_path / "home")
    settings = Settings(home=digits.home, api_key=TOKEN, export={"measure_s": 0.5})
    request = Request(ref=ModelRef(name="digits-cnn", version="1"), on=(On(where=agent.url),))
    found = {each.name: each for each in attempt(request, settings).report.rows}
    for local in exported_digits.report.rows:
        theirs = found[local.name]
        if local.quality is not None and theirs.quality is not None:
            assert theirs.quality == local.quality, local.name
        proved = (Verdict.CHOSEN, Verdict.ADMITTED)  # which of them is the cheapest is the machine's to say
        assert (theirs.verdict in proved) == (local.verdict in proved), local.name
        assert theirs.on == agent.url
