"""`seatrial tune` on real servers: what it asks, what it survives, what it writes, and who follows it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from seatrial.bundle import Bundle, Evidence, Tuning, open_bundle
from seatrial.bundle.evidence import Provenance
from seatrial.errors import InvalidSource
from seatrial.machine import cores, this_machine, tree_bytes
from seatrial.settings import Access, Batching, Engines, Serving, Tls
from seatrial_serving.bench import Plan
from seatrial_serving.engine_process import NAME as ENGINE
from seatrial_serving.sources import describe
from seatrial_serving.tune.advice import as_toml, as_variables, keep
from seatrial_serving.tune.configuration import Configuration
from seatrial_serving.tune.search import Measured
from seatrial_serving.tune.served import Lost, Served, served
from seatrial_serving.tune.traffic import generate, read_recording
from seatrial_serving.tune.tuned import Request, Tuned
from tests.commands import type_seatrial
from tests.conditions import until
from tests.servers import serving
from tests.serving.models import SIGNATURE, LinearBundle

ENOUGH = 2**30


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As an export leaves one: with evidence."""
    made = LinearBundle().write(tmp_path_factory.mktemp("store"))
    made.replace_evidence(
        Evidence(
            bundle=made.digest,
            written_at="2026-01-01T00:00:00Z",
            machine=this_machine(),
            provenance=Provenance(source="models:/linear/1"),
            size_bytes=700,
        )
    )
    return made


# What is asked


def test_golden_requests_are_asked_with_as_many_rows_as_wanted(bundle: Bundle) -> None:
    """The golden request has two rows."""
    [one] = generate(bundle, rows=1).requests
    assert one.inputs[0].array.tolist() == [[1, 2, 3, 4]]
    [five] = generate(bundle, rows=5).requests
    assert five.inputs[0].array[:, 0].tolist() == [1, -1, 1, -1, 1]
    with pytest.raises(InvalidSource, match="linear takes 64 rows a request, --rows 65 were asked for"):
        generate(bundle, rows=65)


def line(rows: int = 1, **more: object) -> str:
    data = np.ones((rows, 4)).ravel().tolist()
    return json.dumps({"inputs": [{"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": data}], **more})


def test_a_recording_keeps_its_requests_and_their_rhythm(tmp_path: Path) -> None:
    recording = tmp_path / "requests.jsonl"
    recording.write_text("\n".join([line(1, at=10.0), "", line(3, at=10.1), line(2, at=10.2), line(1, at=10.6)]))
    traffic = read_recording(recording, SIGNATURE)
    assert [len(request.inputs[0].array) for request in traffic.requests] == [1, 3, 2, 1]
    assert traffic.due == pytest.approx((0, 0.1 / 0.8, 0.2 / 0.8, 0.6 / 0.8)), (
        "and a mean gap of 0.2 s to the next round"
    )
    recording.write_text(f"{line()}\n{line(2)}\n")
    assert read_recording(recording, SIGNATURE).due == (0.0,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no request"),
        (f"{line()}\n{{", "line 2: "),
        (line().replace('"x"', '"z"'), "line 1: there is no input 'z'"),
        (f"{line(at=1)}\n{line()}", "line 2: either every request says when it came"),
        (f"{line(at=2)}\n{line(at=1)}", "line 2: it came at 1 s, which is before"),
        (line(at=-1), "line 1: it came at -1 s"),
        (line(at="soon"), "line 1: "),
        ("[" * 100_000, "line 1: "),
        ("\n" * 10_001, "has 10001 lines"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_recording_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "requests.jsonl").write_text(text)
    with pytest.raises(InvalidSource, match=r"requests\.jsonl") as refused:
        read_recording(tmp_path / "requests.jsonl", SIGNATURE)
    assert words in str(refused.value)


# A server that is tried


@pytest.fixture
def tried(bundle: Bundle) -> Iterator[Served]:
    """By one gateway: where a second one is started at need, it answers while the first is stopped."""
    settings = Serving(gateways=1, engines=Engines(count=1))
    with served(str(bundle.path), settings, most_bytes=ENOUGH, within_s=60) as server:
        yield server


def plan(server: Served, **more: Any) -> Plan:
    given = {"callers": 2, "seconds": 0.2, "warm_up_s": 0.0} | more
    return Plan(url=server.address("rest"), model=server.model, **given)


def test_it_is_served_with_these_settings_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever a file or a variable says; and no key is asked for, no port taken that is in use, nothing cached."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seatrial.toml").write_text("[serving.engines]\ncount = 2\n[serving]\nhttp_port = 1\n")
    monkeypatch.setenv("SEATRIAL_SERVING__ENGINES__COUNT", "2")
    settings = Serving(
        http_port=1, engines=Engines(count=1), access=Access(file=tmp_path / "none"), cache_bytes=2**20,
        tls=Tls(certificate=tmp_path / "none", key=tmp_path / "none"),
    )  # fmt: skip
    with served(str(bundle.path), settings, most_bytes=ENOUGH, within_s=60) as server:
        result = server.ask(plan(server), within_s=10)
        server.weigh()
        children = psutil.Process().children(recursive=True)
        engines = [child for child in children if child.name() == ENGINE]
        held = sum(child.memory_full_info().pss for child in children)
        engines[0].suspend()  # it cannot notice that its gateway is gone
    assert len(engines) == 1
    assert result.outcomes == {"ok": result.requests}
    assert 0.5 * held < server.peak_bytes < 2 * held
    until(lambda: not any(child.is_running() for child in children))


def test_what_hangs_or_dies_is_lost_and_says_why(tried: Served) -> None:
    [process] = [child for child in psutil.Process().children() if "tune.child" in " ".join(child.cmdline())]
    process.suspend()
    with pytest.raises(Lost, match=r"hung: no end after 0\.5 s"):
        tried.ask(plan(tried), within_s=0.5)
    process.resume()
    assert tried.ask(plan(tried), within_s=10).failed == 0, "a hang that ends does no harm to the next"
    with pytest.raises(Lost, match=r"all of (\d+) requests failed: \{'400': \1\}"):
        tried.ask(plan(tried, rows=100), within_s=10)
    process.kill()
    with pytest.raises(Lost, match="ended with SIGKILL"):
        tried.ask(plan(tried), within_s=10)


def test_what_takes_too_much_memory_is_killed(bundle: Bundle) -> None:
    with (
        pytest.raises(Lost, match=r"took \d+ MiB of memory, more than the 20 allowed \(--memory\), and was killed"),
        served(str(bundle.path), Serving(), most_bytes=20 * 2**20, within_s=60) as server,
    ):
        server.ask(plan(server, seconds=10), within_s=20)


def test_what_does_not_start_says_why(tmp_path: Path) -> None:
    wrong = LinearBundle(golden_scale=1.1).write(tmp_path)
    with (
        pytest.raises(Lost, match=r"(?s)ended with 1: .*GoldenMismatch"),
        served(str(wrong.path), Serving(engines=Engines(count=1)), most_bytes=ENOUGH, within_s=60),
    ):
        pass


@pytest.mark.slow
def test_a_server_does_not_outlive_a_tuning_that_is_killed(bundle: Bundle) -> None:
    code = """
        import os, sys
        from seatrial.settings import Serving
        from seatrial_serving.tune.served import served
        with served(sys.argv[1], Serving(), most_bytes=2**30, within_s=60):
            print("up", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(bundle.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tuning:
        assert tuning.stdout is not None
        assert tuning.stdout.readline() == b"up\n"
        children = psutil.Process(tuning.pid).children(recursive=True)
        assert ENGINE in {child.name() for child in children}
        tuning.kill()
    until(lambda: not any(child.is_running() for child in children))


# The command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "ctrl_c"),
    [
        (signal.SIGINT, "--default-signal=INT"),
        (signal.SIGTERM, "--default-signal=INT"),
        (signal.SIGTERM, "--ignore-signal=INT"),  # as a shell has it for what runs in the background
    ],
)
def test_whoever_ends_it_early_gets_the_best_so_far_and_evidence_of_the_same_digest(
    bundle: Bundle, tmp_path: Path, number: signal.Signals, ctrl_c: str
) -> None:
    recording = tmp_path / "requests.jsonl"
    recording.write_text(f"{line(at=0)}\n{line(2, at=1)}\n")
    command = ["env", ctrl_c, sys.executable, "-m", "seatrial", "tune", str(bundle.path), "--p99-ms", "1000"]
    command += ["--minutes", "5", "--json", "--traffic", str(recording), "--page", str(tmp_path / "page.html")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tuning:
        assert tuning.stderr is not None
        first = tuning.stderr.readline()
        assert first.startswith(b"as it is set now: "), first
        children = psutil.Process(tuning.pid).children(recursive=True)
        os.kill(tuning.pid, number)
        out, err = tuning.communicate(timeout=120)
    assert tuning.returncode == 0, err
    until(lambda: not any(child.is_running() for child in children))
    told = json.loads(out)
    assert (told["interrupted"], told["traffic"]) == (True, "2 requests of requests.jsonl")
    assert (told["settings"], told["proved"]) == ({}, False), "one configuration is no contest"

    written = open_bundle(bundle.path, expected=bundle.digest)
    written.verify()
    evidence = written.evidence()
    assert evidence is not None
    assert (evidence.size_bytes, evidence.provenance.source) == (700, "models:/linear/1"), "the rest is as it was"
    tuning_found = evidence.tuning
    assert tuning_found is not None
    assert (tuning_found.p99_ms, tuning_found.machine.cores) == (1000, cores())
    now = tuning_found.tried[0]
    assert (now.settings["batching.max_size"], now.lost) == (64, "")
    assert now.per_second > 0
    assert now.memory_bytes > 10 * 2**20
    assert told["tried"] == json.loads(msgspec.json.encode(tuning_found.tried))
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_a_tuning_keeps_its_time_and_makes_no_evidence_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However busy the machine: in three seconds the server may not even start, or not keep up."""
    made = LinearBundle().write(tmp_path)
    options = ("--p99-ms", 1000, "--minutes", 0.05)
    began = time.monotonic()
    typed = type_seatrial("tune", made.path, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert 1 < time.monotonic() - began < 3 + 5
    assert made.evidence() is None
    if typed.code:
        late = "could not be measured: was not ready within", "nothing that was tried keeps p99 within 1000 ms"
        assert any(words in typed.err for words in late)
    else:
        assert "evidence none was written: no evidence of an export lies beside the bundle" in typed.out
        assert "as it is set now" in typed.out
    assert not psutil.Process().children(recursive=True)


def test_what_is_proved_is_not_replaced_by_what_is_not(bundle: Bundle) -> None:
    evidence = tuned(bundle, ADVICE).evidence()
    request = Request(what="", p99_ms=5)
    unproved = Tuned(request=request, machine=this_machine(), bundle=bundle, traffic="")
    unproved.found = [Measured(configuration=Configuration.of(Serving()), points=(), memory_bytes=0, lost="hung")]
    assert keep(unproved) == (None, "what was proved on 2026-01-01T00:00:00Z stays")
    assert bundle.evidence() == evidence


@pytest.mark.slow
def test_what_cannot_be_measured_at_all_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = LinearBundle(golden_scale=1.1).write(tmp_path)
    typed = type_seatrial("tune", wrong.path, "--p99-ms", 5, monkeypatch=monkeypatch, capsys=capsys)
    assert typed.code == 1
    assert "could not be measured: ended with 1" in typed.err
    assert "GoldenMismatch" in typed.err


# Whoever follows it


def tuned(bundle: Bundle, settings: dict[str, int | float | None], *, on_cores: int | None = None) -> Bundle:
    evidence = bundle.evidence()
    assert evidence is not None
    machine = msgspec.structs.replace(this_machine(), cores=on_cores or cores())
    tuning = Tuning(
        p99_ms=5, written_at="2026-01-01T00:00:00Z", machine=machine, traffic="", settings=settings,
        gain=(1.2, 1.1, 1.3), proved=True, held_per_second=0, verdict="", tried=(),
    )  # fmt: skip
    bundle.replace_evidence(msgspec.structs.replace(evidence, tuning=tuning))
    return bundle


ADVICE: dict[str, int | float | None] = {"engines.count": 1, "engines.threads": None, "batching.max_size": 16}


def test_a_server_that_is_told_to_follows_the_advice(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    path = tuned(bundle, ADVICE).path
    server = Serving(tuned=True, batching=Batching(max_delay_ms=2))
    _, followed = describe(path, server, alias="")
    assert (followed.engines.count, followed.batching.max_size) == (1, 16)
    assert followed.batching.max_delay_ms == 2, "what the advice does not name stays"
    assert "gateways" not in caplog.text
    describe(tuned(bundle, ADVICE | {"gateways": 2}).path, server, alias="")
    assert ("was tuned with 2 gateways" in caplog.text) == (cores() > 1)
    _, unasked = describe(path, Serving(), alias="")
    assert unasked == Serving()


@pytest.mark.parametrize(
    ("settings", "on_cores", "words"),
    [
        (ADVICE, cores() + 1, f"tuned on {cores() + 1} cores and there are {cores()} here"),
        ({"engines.count": cores() + 1}, None, "is more than the"),
        ({"engines.count": 0}, None, "greater than or equal to 1"),
        ({"http_port": 1}, None, "there are no settings ['http_port'] to tune"),
    ],
    ids=["other machine", "too many", "none", "not ours"],
)
def test_advice_that_does_not_fit_is_not_followed(
    bundle: Bundle,
    settings: dict[str, int | float | None],
    on_cores: int | None,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Serving(tuned=True)
    assert describe(tuned(bundle, settings, on_cores=on_cores).path, server, alias="")[1] == server
    assert words in caplog.text


def test_a_bundle_that_was_never_tuned_is_served_as_it_is_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Serving(tuned=True)
    assert describe(LinearBundle().write(tmp_path).path, server, alias="")[1] == server
    assert "it was not tuned here; `seatrial tune` does that" in caplog.text


def test_serve_tuned_starts_as_many_engines_as_advised(bundle: Bundle, tmp_path: Path) -> None:
    with serving(tuned(bundle, ADVICE).path, "--tuned", place=tmp_path) as server:
        assert len(server.engines()) == 1
        assert "is served as it was tuned on 2026-01-01" in server.err.read_text()


def test_advice_can_be_pasted() -> None:
    assert as_toml({"engines.count": 1, "engines.threads": None, "batching.max_delay_ms": 0.5}) == textwrap.dedent(
        """\
        [serving.engines]
        count = 1
        # threads: leave it out

        [serving.batching]
        max_delay_ms = 0.5"""
    )
    assert as_variables(ADVICE) == "SEATRIAL_SERVING__ENGINES__COUNT=1 SEATRIAL_SERVING__BATCHING__MAX_SIZE=16"


def test_the_memory_of_a_tree_counts_a_shared_page_once() -> None:
    assert 0 < tree_bytes(os.getpid()) <= psutil.Process().memory_info().rss + 2**20
    assert tree_bytes(2**22 + 1) == 0, "nobody"
