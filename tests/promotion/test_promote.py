"""Promotion and rollback against a real registry, with processes that are killed on the way."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from seatrial.errors import GateFailed, InvalidSettings, NotInRegistry
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_promotion.entry import Act, Entry, Verdict, broken_links
from seatrial_promotion.ledger import Ledger
from seatrial_promotion.promote import Promotion, promote
from seatrial_promotion.rollback import rollback
from seatrial_promotion.status import status
from tests.commands import Typed, type_seatrial
from tests.conditions import until
from tests.promotion.test_gates import Classifier, evidence
from tests.registries import publish
from tests.servers import serving

WAIVED = {"quality": "a test without data"}


@pytest.fixture
def registry(settings: Settings) -> EmbeddedRegistry:
    return EmbeddedRegistry(settings)


@pytest.fixture
def ledger(registry: EmbeddedRegistry) -> Ledger:
    return Ledger(registry)


def register(registry: EmbeddedRegistry, tmp_path: Path, version: str, *, measured: bool = True) -> str:
    """A version with a bundle, and no alias."""
    bundle = Classifier(version=version, measured=measured).contender(tmp_path / "built").bundle
    number = publish(registry, bundle, alias="candidate")
    registry.client.delete_registered_model_alias("onehot", "candidate")
    return number


def asked(version: str, **change: object) -> Promotion:
    return Promotion(name="onehot", version=version, by="tester", **{"waivers": WAIVED, **change})  # type: ignore[arg-type]


@pytest.fixture
def seatrial(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Typed]:
    return functools.partial(type_seatrial, monkeypatch=monkeypatch, capsys=capsys)


def test_a_promotion_moves_the_alias_and_is_in_the_ledger(
    settings: Settings, registry: EmbeddedRegistry, ledger: Ledger, tmp_path: Path
) -> None:
    first, second = register(registry, tmp_path, "1"), register(registry, tmp_path, "2")
    promote(asked(first), settings)
    entry = promote(asked(second, reason="better"), settings)
    assert ledger.target("onehot", "champion") == second
    assert (entry.before, entry.after, entry.verdict, entry.by, entry.reason) == (
        first,
        second,
        "done",
        "tester",
        "better",
    )
    assert [gate.gate for gate in entry.gates] == ["bundle", "quality"]
    assert entry.gates[1].waiver == "a test without data"
    assert ledger.entries("onehot")[-1] == entry


def test_a_gate_that_says_no_leaves_the_alias_and_the_refusal(
    settings: Settings, registry: EmbeddedRegistry, ledger: Ledger, tmp_path: Path
) -> None:
    first = register(registry, tmp_path, "1")
    unmeasured = register(registry, tmp_path, "2", measured=False)
    promote(asked(first), settings)
    with pytest.raises(GateFailed, match="never measured"):
        promote(asked(unmeasured), settings)
    assert ledger.target("onehot", "champion") == first
    refusal = ledger.entries("onehot")[-1]
    assert (refusal.verdict, refusal.after) == (Verdict.REFUSED, unmeasured)
    third = register(registry, tmp_path, "3")
    with pytest.raises(GateFailed, match="labelled data"):
        promote(asked(third, waivers={}), settings)


def test_promoting_what_is_promoted_already_changes_nothing(
    settings: Settings, registry: EmbeddedRegistry, ledger: Ledger, tmp_path: Path
) -> None:
    first = register(registry, tmp_path, "1")
    assert promote(asked(first), settings) == promote(asked(first), settings)
    assert len(ledger.entries("onehot")) == 1


@pytest.mark.slow
def test_rollbacks_go_back_one_promotion_each_and_forward_again(
    settings: Settings, registry: EmbeddedRegistry, ledger: Ledger, tmp_path: Path
) -> None:
    versions = [register(registry, tmp_path, str(n)) for n in (1, 2, 3)]
    for version in versions:
        promote(asked(version), settings)
    assert rollback("onehot", settings, reason="oops").after == versions[1]
    assert rollback("onehot", settings).after == versions[0]
    with pytest.raises(NotInRegistry, match="no version that onehot@champion pointed at before"):
        rollback("onehot", settings)
    promote(asked(versions[2]), settings)
    assert rollback("onehot", settings).after == versions[0]
    assert [entry.act for entry in ledger.entries("onehot")][-2:] == [Act.PROMOTE, Act.ROLLBACK]
    assert broken_links(ledger.entries("onehot")) == []


def test_what_was_set_by_other_hands_before_the_first_promotion_can_be_gone_back_to(
    settings: Settings, registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    first, second = register(registry, tmp_path, "1"), register(registry, tmp_path, "2")
    registry.client.set_registered_model_alias("onehot", "champion", first)
    promote(asked(second), settings)
    assert rollback("onehot", settings).after == first


def test_aliases_have_histories_of_their_own(settings: Settings, registry: EmbeddedRegistry, tmp_path: Path) -> None:
    first, second = register(registry, tmp_path, "1"), register(registry, tmp_path, "2")
    promote(asked(first), settings)
    promote(asked(first, alias="challenger"), settings)
    promote(asked(second, alias="challenger"), settings)
    with pytest.raises(NotInRegistry):
        rollback("onehot", settings)
    assert rollback("onehot", settings, alias="challenger").after == first


@pytest.mark.parametrize(
    ("promotion", "words"),
    [
        (Promotion(name="onehot", version="9"), "no onehot/9"),
        (Promotion(name="nobody", version="1"), "no nobody/1"),
    ],
)
def test_what_is_not_there_cannot_be_promoted(settings: Settings, promotion: Promotion, words: str) -> None:
    with pytest.raises(NotInRegistry, match=words):
        promote(promotion, settings)


def test_only_gates_that_exist_can_be_waived() -> None:
    with pytest.raises(InvalidSettings, match="there is no gate 'qualty'"):
        asked("1", waivers={"qualty": "typo"})


# Killed on the way

KILLED = """
import os, signal, sys
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import load_settings
from seatrial_promotion import promote as module
from seatrial_promotion.promote import Promotion, promote

moment, version = sys.argv[1:]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
real = EmbeddedRegistry.__init__

def init(self, settings):
    real(self, settings)
    if moment == "in the middle of the entry":
        self.client.log_text = die
    elif moment == "before the alias moved":
        self.client.set_registered_model_alias = die
    elif moment == "after the alias moved":
        self.client.set_terminated = die

EmbeddedRegistry.__init__ = init
promote(Promotion(name="onehot", version=version, by="killed", waivers={"quality": "a test"}), load_settings())
"""


@pytest.mark.parametrize(
    ("moment", "moved"),
    [
        pytest.param("in the middle of the entry", False, marks=pytest.mark.slow),
        pytest.param("before the alias moved", False, marks=pytest.mark.slow),
        ("after the alias moved", True),
    ],
)
def test_a_killed_promotion_is_settled_by_the_next_call(
    settings: Settings, registry: EmbeddedRegistry, ledger: Ledger, tmp_path: Path, moment: str, moved: bool
) -> None:
    first, second = register(registry, tmp_path, "1"), register(registry, tmp_path, "2")
    promote(asked(first), settings)
    killed = subprocess.run([sys.executable, "-c", KILLED, moment, second], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert ledger.target("onehot", "champion") == (second if moved else first)

    promote(asked(second), settings)
    assert ledger.target("onehot", "champion") == second
    verdicts = [(entry.by, entry.verdict) for entry in ledger.entries("onehot")]
    if moved:
        assert verdicts == [("tester", "done"), ("killed", "done")]
    elif moment == "before the alias moved":
        assert verdicts == [("tester", "done"), ("killed", "abandoned"), ("tester", "done")]
    else:
        assert verdicts == [("tester", "done"), ("tester", "done")]
    assert rollback("onehot", settings).after == first
    assert broken_links(ledger.entries("onehot")) == []


def test_an_entry_that_somebody_else_is_writing_is_left_alone(
    registry: EmbeddedRegistry, ledger: Ledger, tmp_path: Path
) -> None:
    register(registry, tmp_path, "1")
    entry = Entry(act=Act.PROMOTE, model="onehot", alias="champion", before="", after="1", bundle="", by="me", at="now")
    Ledger(registry, "elsewhere:1").append(entry)
    ledger.append(entry)
    assert ledger.settle("onehot") == []


def test_a_changed_ledger_is_noticed(
    settings: Settings,
    registry: EmbeddedRegistry,
    ledger: Ledger,
    tmp_path: Path,
    seatrial: Callable[..., Typed],
) -> None:
    for n in (1, 2, 3):
        promote(asked(register(registry, tmp_path, str(n))), settings)
    middle = ledger.entries("onehot")[1]
    registry.client.log_text(middle.id, middle.encode().decode().replace("tester", "nobody"), "entry.json")
    assert len(broken_links(ledger.entries("onehot"))) == 1
    shown = seatrial("history", "onehot")
    assert shown.code == 1
    assert "LedgerBroken" in shown.err

    registry.client.delete_run(middle.id)
    assert len(broken_links(ledger.entries("onehot"))) == 1


# The commands, and the servers that follow


def test_the_commands_tell_people_and_scripts(
    registry: EmbeddedRegistry, tmp_path: Path, seatrial: Callable[..., Typed]
) -> None:
    first, second = register(registry, tmp_path, "1"), register(registry, tmp_path, "2")
    assert "points at version 1" in seatrial("promote", "onehot", first).out
    refused = seatrial("promote", "onehot", second, "--json")
    assert refused.code == 3
    assert json.loads(refused.out)["error"]["type"] == "GateFailed"
    waived = seatrial("promote", "onehot", second, "--waive", "quality=known", "--json")
    assert json.loads(waived.out)["after"] == second
    assert seatrial("promote", "onehot", second, "--waive", "quality").code == 2
    history = json.loads(seatrial("history", "onehot", "--json").out)
    assert [entry["verdict"] for entry in history["entries"]] == ["done", "refused", "done"]
    assert "WAIVED  quality" in seatrial("history", "onehot").out
    assert "onehot@champion -> version 2" in seatrial("status").out


@pytest.mark.parametrize(
    "command",
    [
        ["rollback", "onehot"],
        pytest.param(["history", "onehot"], marks=pytest.mark.slow),
        pytest.param(["status"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_what_is_typed_in_a_bad_moment_does_not_wait_for_torch(home: Path, command: list[str]) -> None:
    assert home.exists()
    asked = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "seatrial", *command], capture_output=True, text=True, check=False
    )
    imported = {line.rpartition("|")[2].strip() for line in asked.stderr.splitlines()}
    assert "mlflow" in imported
    assert "torch" not in imported


def test_a_rollback_waits_until_servers_answer_with_the_old_version(
    settings: Settings, registry: EmbeddedRegistry, tmp_path: Path, seatrial: Callable[..., Typed]
) -> None:
    first, second = register(registry, tmp_path, "1"), register(registry, tmp_path, "2")
    promote(asked(first), settings)
    promote(asked(second), settings)
    with serving(
        "onehot@champion", place=tmp_path / "server", environment={"SEATRIAL_REGISTRY__POLL_S": "0.1"}
    ) as server:
        assert httpx.get(server.url("/v2/models/onehot")).json()["properties"]["version"] == second
        rolled = seatrial("rollback", "onehot", "--server", f"http://{server.http}")
        assert f"http://{server.http} answers with version {first}" in rolled.out
        assert httpx.get(server.url("/v2/models/onehot")).json()["properties"]["version"] == first

        registry.client.set_registered_model_alias("onehot", "champion", second)
        until(lambda: httpx.get(server.url("/v2/models/onehot")).json()["properties"]["version"] == second)
        [standing] = status(settings, servers=[server.http, "127.0.0.1:9"])
        assert any("moved by other means" in warning for warning in standing.warnings)
        assert [bool(answer.error) for answer in standing.answers] == [False, True]


def test_evidence_of_another_bundle_is_no_evidence(
    settings: Settings, registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    other = Classifier(version="9").contender(tmp_path / "other").bundle
    contender = Classifier(version="1").contender(tmp_path / "built")
    contender.bundle.replace_evidence(evidence(other))
    number = publish(registry, contender.bundle, alias="candidate")
    with pytest.raises(GateFailed, match="is evidence of"):
        promote(asked(number), settings)
