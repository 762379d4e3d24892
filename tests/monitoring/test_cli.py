"""`seatrial monitor` as it is typed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import type_seatrial
from tests.servers import serving
from tests.serving.models import linear_onnx


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    return lambda *arguments: type_seatrial("monitor", *arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_write_writes_one_s_own_objectives(typed: Any, tmp_path: Path) -> None:
    place = tmp_path / "watching"
    done = typed(
        "write", place, "--objective", "availability=99.5", "--objective", "latency=95", "--latency-ms", "50", "--json"
    )
    assert done.code == 0
    assert {Path(path).relative_to(place).as_posix() for path in json.loads(done.out)} == {
        "grafana-dashboards/serving.json",
        "prometheus-rules/seatrial.rules.yaml",
        "prometheus-rules/causes.test.yaml",
        "prometheus-rules/objectives.test.yaml",
        "runbook.md",
    }
    rules = (place / "prometheus-rules/seatrial.rules.yaml").read_text()
    assert 'ratio_rate1h{slo="seatrial-availability"} > 0.072' in rules
    assert 'ratio_rate1h{slo="seatrial-latency"} > 0.72' in rules
    assert 'le="0.05"' in rules
    assert "took longer than 50 ms" in (place / "runbook.md").read_text()


def test_the_latency_comes_from_the_server_s_own_setting(
    typed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEATRIAL_SERVING__LATENCY_BUDGET_MS", "40")
    assert typed("write", tmp_path).code == 0
    assert 'le="0.04"' in (tmp_path / "prometheus-rules/seatrial.rules.yaml").read_text()


@pytest.mark.parametrize(
    ("objective", "words", "code"),
    [
        ("speed=99", "there are availability=PERCENT and latency=PERCENT", 2),
        ("latency=most", "'most' is no number", 2),
        ("availability=50", "at least 95", 1),
    ],
)
def test_what_cannot_be_promised_is_said(typed: Any, tmp_path: Path, objective: str, words: str, code: int) -> None:
    refused = typed("write", tmp_path / "out", "--objective", objective)
    assert refused.code == code
    assert words in refused.err
    assert not (tmp_path / "out").exists()


def test_check_says_what_a_live_server_feeds_and_what_stays_empty(typed: Any, tmp_path: Path) -> None:
    other = {"SEATRIAL_SERVING__LATENCY_BUDGET_MS": "30"}
    with serving(linear_onnx(tmp_path / "m.onnx"), place=tmp_path / "server", environment=other) as server:
        well = typed("check", server.metrics_address, "--latency-ms", "30", "--json")
        assert well.code == 0
        assert json.loads(well.out)["gaps"] == []
        assert json.loads(well.out)["panels"] > 25
        badly = typed("check", f"http://{server.metrics_address}/metrics", "--latency-ms", "20")
        assert badly.code == 1
        assert 'no sample has le="0.02"' in badly.out
        nothing = typed("check", server.http)
        assert nothing.code == 1
        assert "does not give its metrics" in nothing.err
