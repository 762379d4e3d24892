"""What tuning found, for the evidence of a bundle and as lines to paste."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from seatrial.bundle import EVIDENCE, Tried, Tuning
from seatrial_serving.tune.configuration import Value
from seatrial_serving.tune.search import Measured
from seatrial_serving.tune.tuned import Tuned


def tuning(tuned: Tuned) -> Tuning:
    verdict, p99_ms = tuned.verdict, tuned.request.p99_ms
    gain = verdict.gain
    return Tuning(
        p99_ms=p99_ms,
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=tuned.machine,
        traffic=tuned.traffic,
        settings=verdict.chosen.settings if verdict.chosen and tuned.advice else {},
        gain=(gain.middle, gain.low, gain.high) if gain else None,
        proved=verdict.chosen is not None,
        held_per_second=tuned.held.per_second if tuned.held else 0.0,
        verdict=verdict.words,
        tried=tuple(_tried(measured, p99_ms) for measured in tuned.found),
    )


def _tried(measured: Measured, p99_ms: float) -> Tried:
    settings, lost = measured.configuration.settings, measured.lost
    point = measured.best(p99_ms)
    if point is None:
        near = measured.closest
        lost = lost or (
            f"p99 is {near.p99_ms:.3g} ms, callers {near.callers}, failed {near.failed}" if near else "not measured"
        )
        return Tried(settings=settings, memory_bytes=measured.memory_bytes, lost=lost)
    return Tried(
        settings=settings,
        per_second=point.per_second,
        p99_ms=point.p99_ms,
        callers=point.callers,
        memory_bytes=measured.memory_bytes,
    )


def keep(tuned: Tuned) -> tuple[Path | None, str]:
    """Write it into the evidence beside the bundle: where that is, or why it was not.

    Evidence is what an export measured; a file that only tuning wrote would pass for that at the gates of a promotion.
    """
    if tuned.bundle is None:
        return None, "it is no bundle"
    if (evidence := tuned.bundle.evidence()) is None:
        return None, "no evidence of an export lies beside the bundle"
    found = tuning(tuned)
    if evidence.tuning and evidence.tuning.proved and not found.proved:
        return None, f"what was proved on {evidence.tuning.written_at} stays"
    tuned.bundle.replace_evidence(msgspec.structs.replace(evidence, tuning=found))
    return tuned.bundle.file(EVIDENCE), ""


def as_toml(settings: Mapping[str, Value]) -> str:
    """Lines for `seatrial.toml`. A setting that is to be left to the server is a comment."""
    groups: dict[str, list[str]] = {}
    for name, value in settings.items():
        group, _, setting = f"serving.{name}".rpartition(".")
        line = f"# {setting}: leave it out" if value is None else f"{setting} = {json.dumps(value)}"
        groups.setdefault(group, []).append(line)
    return "\n\n".join("\n".join([f"[{group}]", *lines]) for group, lines in groups.items())


def as_variables(settings: Mapping[str, Value]) -> str:
    return " ".join(
        f"SEATRIAL_SERVING__{name.replace('.', '__').upper()}={json.dumps(value)}"
        for name, value in settings.items()
        if value is not None
    )
