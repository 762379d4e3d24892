"""What `seatrial gc` finds and removes; that a running server's bundle stays is in tests/serving/test_server.py."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from seatrial.bundle import Bundle, Draft, write_bundle
from seatrial.bundle.leftover import Hold, Stored, _alone, built_for, survey
from seatrial.bundle.store import is_whole
from seatrial.errors import BundleCorrupt
from seatrial.registry import ModelRef
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.registry.events import Answered, Resolved
from seatrial.registry.watch import Watcher
from seatrial.settings import Settings
from tests.commands import type_seatrial
from tests.core.test_bundle import draft as draft  # noqa: PLC0414 - a fixture
from tests.registries import publish

HOUR = 3600.0
NOW = 1_600_000_000.0


@pytest.fixture
def store(settings: Settings) -> Path:
    return settings.bundles


def written(draft: Draft, store: Path, label: str, *, age_s: float = 2 * HOUR) -> Bundle:
    bundle = write_bundle(replace(draft, labels=(label, "b", "c")), store)
    os.utime(bundle.path, (NOW - age_s, NOW - age_s))
    return bundle


def surveyed(store: Path, needed: dict[str, str] | None = None) -> dict[Path, Stored]:
    return {each.path: each for each in survey(store, needed or {}, unused_for_s=HOUR, now=NOW)}


def test_what_is_needed_is_known_by_its_digest_its_age_or_who_holds_it(draft: Draft, store: Path) -> None:
    named, young, served = (
        written(draft, store, "named"),
        written(draft, store, "young", age_s=60),
        written(draft, store, "s"),
    )
    free = written(draft, store, "free")
    hold = Hold(served.path)
    found = surveyed(store, {named.digest: "tiny/1, @champion"})
    assert [found[each.path].needed for each in (named, young, served, free)] == [
        "tiny/1, @champion",
        "written or asked for 1 minutes ago",
        "a running server",
        "",
    ]
    hold.release()
    assert found[free.path].model == "tiny/1"
    assert found[free.path].size_bytes == sum(file.stat().st_size for file in free.path.rglob("*") if file.is_file())


def test_nothing_is_removed_that_somebody_has_taken_hold_of(draft: Draft, store: Path) -> None:
    bundle = written(draft, store, "free")
    [free] = surveyed(store).values()
    hold = Hold(bundle.path)
    assert not free.remove()
    hold.release()
    built_for(bundle.path).mkdir()
    assert free.remove()
    assert list(store.iterdir()) == []
    assert not free.remove(), "it is gone"


def test_nobody_takes_hold_of_what_is_being_removed(draft: Draft, store: Path) -> None:
    bundle = written(draft, store, "free")
    with _alone(bundle.path) as free:
        assert free
        with pytest.raises(BundleCorrupt, match="is being removed"):
            Hold(bundle.path)
    Hold(bundle.path).release()


def test_from_the_command_line_only_what_no_alias_and_no_memory_names_is_removed_and_only_if_told(
    settings: Settings, store: Path, draft: Draft, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = EmbeddedRegistry(settings)
    aliased, served, left = (written(draft, store, label) for label in ("aliased", "served", "left"))
    pinned = publish(registry, served)
    publish(registry, aliased)
    [told, _] = (watcher := Watcher([ModelRef(name="tiny", version=pinned)], settings)).poll()
    assert (told.digest if isinstance(told, Resolved) else told) == served.digest

    def collect(*options: str) -> dict[str, list[str]]:
        typed = type_seatrial("gc", "--json", "--unused-for", "0", *options, monkeypatch=monkeypatch, capsys=capsys)
        assert typed.code == 0, typed
        return {what: [each["path"] for each in found] for what, found in json.loads(typed.out).items()}

    needed = sorted(str(each.path) for each in (aliased, served))
    conversion = settings.conversions / "abc"
    conversion.mkdir(parents=True)
    unused = [str(conversion)]
    assert collect() == {"removed": [], "unneeded": [str(left.path)], "needed": needed, "conversions": unused}
    assert left.path.exists()
    assert collect("--unused-for", "1")["conversions"] == []
    assert collect("--yes") == {"removed": [str(left.path)], "unneeded": [], "needed": needed, "conversions": unused}
    assert not left.path.exists()
    assert list(settings.conversions.iterdir()) == []

    shutil.rmtree(served.path)
    assert watcher.poll() == [Answered()]
    assert is_whole(served.path), "who follows it has fetched it again"


def test_without_an_answer_from_the_registry_nothing_is_removed(
    store: Path, draft: Draft, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = written(draft, store, "left")
    monkeypatch.setenv("SEATRIAL_REGISTRY__TRACKING_URI", "http://127.0.0.1:9")
    typed = type_seatrial("gc", "--yes", "--unused-for", "0", monkeypatch=monkeypatch, capsys=capsys)
    assert (typed.code, "RegistryUnreachable" in typed.err) == (1, True)
    assert left.path.exists()
