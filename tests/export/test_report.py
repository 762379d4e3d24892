"""The report: one value, as JSON for programs and as one page for people."""

import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest
from rich.console import Console

from seatrial.bundle.evidence import Agreement, Quality
from seatrial.machine import Machine
from seatrial_export.candidate import CANDIDATES, Candidate, Lost, Verdict
from seatrial_export.choose import Budget, Objective, choose
from seatrial_export.page import BOTTOM, LEFT, RIGHT, TOP, draw, plot
from seatrial_export.report import Report, rows, verdict_sentence
from seatrial_export.sensitivity import Layer
from seatrial_export.summary import Progress, table
from tests.export.test_choose import variant

ON_ONNX_CPU = FLOAT, DYNAMIC, STATIC, PRUNED = CANDIDATES[:4]
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>'


def report(*, hostile: str = "", budget: Budget | None = None) -> Report:
    """Three variants and a candidate that crashed; `hostile` is in every text that somebody else decides."""
    budget = budget or Budget()
    judged = choose(
        [
            variant(FLOAT, row_ms=2, accuracy=0.9, drop_upper=0.004),
            variant(STATIC, row_ms=1, accuracy=0.896, drop_upper=0.009),
            variant(PRUNED, row_ms=0.6, accuracy=0.5, drop_upper=0.45),
        ],
        budget,
    )
    lost = Lost(
        candidate=DYNAMIC,
        verdict=Verdict.NOT_BUILT,
        reason=f"crashed{hostile}",
        log="log.txt",
        command=f"env {hostile}",
    )
    asked = (
        Layer(name=f"conv1{hostile}", operator="Conv", noise=0.0314, kept=True),
        *(Layer(name=f"conv{n}", operator="Conv", noise=0.001) for n in range(2, 14)),
        Layer(name="output", operator="Gemm", noise=None),
    )
    found = rows(ON_ONNX_CPU, judged, [lost], {STATIC: asked})
    chosen = {row.target: row.name for row in found if row.verdict is Verdict.CHOSEN}
    return Report(
        model=f"models:/digits{hostile}/1",
        verdict=verdict_sentence("onnx-cpu", found) + hostile,
        basis=f"Judged by its labels.{hostile}",
        chosen=chosen,
        bundles=dict.fromkeys(chosen, "sha256:" + "0" * 64),
        budget=budget.as_dict(),
        objective=Objective.CHEAPEST,
        rows=found,
        notes=(f"a note{hostile}",),
        machine=Machine(cpu=f"AMD{hostile}", cores=2, features=("avx2",), memory_bytes=2**34, gpus=(f"H100{hostile}",)),
        tools={f"torch{hostile}": "2.13.0"},
        seconds={f"building{hostile}": 12.0},
        run_id=f"abc{hostile}",
        written_at="2026-01-01T00:00:00+00:00",
    )


def page(given: Report, folder: Path) -> str:
    draw(given, folder / "report.html")
    return (folder / "report.html").read_text()


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_as_json_is_the_report() -> None:
    given = report()
    assert msgspec.json.decode(given.encode(), type=Report) == given
    assert given.chosen == {"onnx-cpu": STATIC.name}
    assert [row.verdict for row in given.rows] == [
        Verdict.ADMITTED, Verdict.NOT_BUILT, Verdict.CHOSEN, Verdict.OVER_BUDGET,
    ]  # fmt: skip
    assert given.verdict == (
        "onnx-cpu-int8-static was chosen: accuracy 0.8960 (source 0.9000) on 1000 held-out rows, 2.0 times as fast as "
        "onnx-cpu-fp32 and 100% of its size."
    )


def test_what_others_named_is_text_on_the_page_and_nothing_else(tmp_path: Path) -> None:
    harmless, hostile = (Elements(page(report(hostile=words), tmp_path)) for words in ("", HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert {"script", "img"} & {tag for tag, _ in hostile.tags} == set()
    assert not any(name.startswith("on") for _, attributes in hostile.tags for name in attributes)
    assert hostile.text.count(HOSTILE) >= 10


def test_the_page_needs_no_network_and_no_script(tmp_path: Path) -> None:
    text = page(report(), tmp_path)
    found = Elements(text)
    assert not any(attribute in attributes for _, attributes in found.tags for attribute in ("src", "href"))
    assert {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags} == set()
    assert not re.search(r"https?:|url\(|@import", text)


def test_the_page_tells_every_candidate_with_its_reason_and_its_numbers_with_intervals(tmp_path: Path) -> None:
    given = report()
    text = Elements(page(given, tmp_path)).text
    for row in given.rows:
        assert row.name in text
        assert row.reason in text
    for words in (
        "0.8960", "drop ≤ 0.0090", "0.99", "1.01", "p99 5", "Run it again: env", "avx2", "16.0 GiB", "accuracy_drop", "≤ 0.01",
        "30 in memory", "loads in 0.2 s",
    ):  # fmt: skip
        assert words in text


def test_the_page_tells_which_layers_int8_harms_and_which_of_them_are_float(tmp_path: Path) -> None:
    text = " ".join(Elements(page(report(), tmp_path)).text.split())
    assert "1 of 14 layers in float conv1 Conv, float 0.031 conv2 Conv, INT8 0.001" in text
    assert "and 2 more, with less" in text


def test_a_floor_of_the_budget_is_no_ceiling_on_the_page(tmp_path: Path) -> None:
    text = Elements(page(report(budget=Budget(throughput=40)), tmp_path)).text
    assert "≥ 40" in text
    assert "≤ 0.01" in text


def test_a_candidate_without_a_command_shows_its_log_all_the_same(tmp_path: Path) -> None:
    lost = Lost(candidate=FLOAT, verdict=Verdict.NOT_MEASURED, reason="crashed with SIGSEGV", log="stand/log.txt")
    text = page(msgspec.structs.replace(report(), rows=rows([FLOAT], [], [lost])), tmp_path)
    assert "stand/log.txt" in text
    assert "Run it again" not in text


def test_the_page_says_when_nothing_was_measured(tmp_path: Path) -> None:
    bare = rows(
        CANDIDATES[:1], [], [Lost(candidate=FLOAT, verdict=Verdict.NOT_BUILT, reason="no exporter for aten::x")]
    )
    given = msgspec.structs.replace(report(), rows=bare, chosen={}, bundles={})
    text = page(given, tmp_path)
    assert plot(given) is None
    assert "No candidate came as far as being measured." in text
    assert 'class="verdict none"' in text


def test_the_plot_has_the_better_above_the_cheaper_left_and_everything_inside(tmp_path: Path) -> None:
    drawn = plot(report())
    assert drawn is not None
    points = {point.row.name: point for point in drawn.points}
    exact, static, pruned = (points[candidate.name] for candidate in (FLOAT, STATIC, PRUNED))
    assert exact.y < static.y < pruned.y
    assert pruned.x < static.x < exact.x
    assert drawn.floor is not None
    assert static.y_low < drawn.floor < pruned.y_low  # pixels go down: the chosen one's whisker ends above the budget
    for point in drawn.points:
        assert LEFT <= point.x_low <= point.x <= point.x_high <= RIGHT
        assert TOP <= point.y <= point.y_low <= BOTTOM
    numbers = {point.row.name: point.number for point in drawn.points}
    assert numbers == {FLOAT.name: 1, STATIC.name: 3, PRUNED.name: 4}
    svg = re.search(r"<svg.*</svg>", page(report(), tmp_path), re.DOTALL)
    assert svg
    assert ET.fromstring(svg[0]).tag == "svg"


def test_labels_of_equal_variants_do_not_cover_each_other() -> None:
    same = [variant(candidate, row_ms=1, accuracy=0.9) for candidate in ON_ONNX_CPU]
    given = msgspec.structs.replace(report(), rows=rows(ON_ONNX_CPU, choose(same, Budget()), []))
    drawn = plot(given)
    assert drawn is not None
    heights = sorted(point.label_y for point in drawn.points)
    assert all(below - above >= 15 for above, below in itertools.pairwise(heights))


def test_without_labels_there_is_no_line_that_agreement_could_be_taken_to_miss() -> None:
    judged = choose([variant(FLOAT, basis="agreement", accuracy=1.0)], Budget())
    drawn = plot(msgspec.structs.replace(report(), rows=rows([FLOAT], judged, [])))
    assert drawn is not None
    assert drawn.floor is None


@pytest.mark.parametrize("name", ["digits", "[red]digits"])
def test_the_table_shows_names_as_they_are(name: str) -> None:
    candidate = Candidate(target=name, precision=FLOAT.precision)
    given = msgspec.structs.replace(report(), rows=rows([candidate], choose([variant(candidate)], Budget()), []))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(given))
    assert f"{name}-fp32 *" in console.export_text()


def test_progress_is_a_line_for_each_change_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.tell("building", "")
        progress.tell("onnx-cpu-fp32", "converting to ONNX")
    assert capsys.readouterr().err == "building\nonnx-cpu-fp32: converting to ONNX\n"


def test_metrics_have_names_that_mlflow_takes() -> None:
    found = report().rows[2].metrics()
    assert found["accuracy"] == 0.896
    assert found["row_ms"] == 1
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in found)
    assert report().rows[1].metrics() == {}
    assert isinstance(report().rows[2].quality, Quality)
    assert isinstance(report().rows[2].agreement, Agreement)
