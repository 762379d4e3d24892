"""The report: one value, as JSON for programs and as one page for people."""

import functools
import io
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from rich.console import Console

from seatrial.bundle.evidence import Agreement, Quality
from seatrial.machine import Machine
from seatrial_export.candidate import CANDIDATES, Candidate, Lost, Verdict
from seatrial_export.choose import Budget, Objective, choose
from seatrial_export.deltas import Deltas, compare, judge
from seatrial_export.deltas.attribution import Example, Explanations, Likeness, Map
from seatrial_export.deltas.figures import figures
from seatrial_export.deltas.pairs import pair
from seatrial_export.deltas.probed import Curve, Point, Probed
from seatrial_export.page import BOTTOM, LEFT, RIGHT, TOP, draw, plot, scattered
from seatrial_export.report import Report, rows, verdict_sentence
from seatrial_export.search import Search, Sparsities
from seatrial_export.sensitivity import Layer
from seatrial_export.sparsity import Taught
from seatrial_export.study import Trial, with_front
from seatrial_export.summary import Progress, table
from seatrial_training.data import Split
from seatrial_training.evaluation import score
from tests.export.test_choose import variant
from tests.serving.models import SIGNATURE

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
        deltas=(deltas(hostile=hostile),),
        searches=(
            Search(
                target=f"onnx-cpu{hostile}", base=f"static{hostile}", seed=17, rows=269, cut_short=True,
                trials=with_front([
                    Trial(cut_ppm=1, floats=0, lost=0.0123, noise=0.5, in_float=0.0),
                    Trial(cut_ppm=33, floats=2, lost=0.0, noise=0.01, in_float=0.125),
                    Trial(cut_ppm=900, floats=3, lost=0.004, noise=0.02, in_float=0.25),
                ]),
                built={1: f"static-33ppm{hostile}"},
            ),
            Search(target="openvino-cpu", why_not=f"there is nothing to search{hostile}"),
        ),
    )  # fmt: skip


@functools.cache
def deltas(*, hostile: str = "") -> Deltas:
    """Of 400 rows of two classes, 30 of the first of which are lost; with all that a probe finds."""
    truth = np.repeat([0, 1], 200)
    logits = np.eye(2, dtype=np.float32)[truth]
    turned = np.arange(400) < 30
    rows = Split(inputs={"x": logits}, labels=truth)
    source, found = (score(lambda inputs: {"logits": inputs["x"]}, each, batch_size=64) for each in (
        rows, replace(rows, inputs={"x": np.where(turned[:, None], logits[:, ::-1] + 0.5, logits)}),
    ))  # fmt: skip
    judged = judge(
        f"int8{hostile}", source, found, rows, signature=SIGNATURE, labels=(f"cat{hostile}", f"dog{hostile}")
    )
    points = tuple(
        Point(at=at, pairs=pair(source.correct, correct))
        for at, correct in ((0.0, source.correct), (5.0, found.correct))
    )
    maps = tuple(Map(of=of, method="occlusion", cells=((1.0, -0.5), (0.25, 0.0))) for of in ("source", "variant"))
    words = tuple(Map(of=of, method="occlusion", cells=((1.0, -0.5),)) for of in ("source", "variant"))
    return msgspec.structs.replace(
        judged,
        probed=Probed(
            corruptions=(Curve(name="contrast", points=points),),
            attacks=(Curve(name="FGSM", points=points),),
            explanations=Explanations(
                likenesses=(Likeness(method="occlusion", rows=9, median=0.987, low=0.81),),
                examples=(
                    Example(row=17, label="cat", likeness=0.5, maps=maps, picture=(((0, 0, 0), (255, 0, 9)),) * 2),
                    Example(row=18, label=f"dog{hostile}", likeness=0.6, maps=words, words=(f"bow{hostile}", "wow")),
                ),
            ),
            notes=(f"something was not asked{hostile}",),
        ),
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
        "0.8960", "drop ≤ 0.0090", "0.99", "1.01", "p99 5", "how to run it again", "avx2", "16.0 GiB", "accuracy_drop", "≤ 0.01",
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
    assert "run it again" not in text


def test_the_page_tells_what_the_chosen_variant_does_differently(tmp_path: Path) -> None:
    given = report()
    text = " ".join(Elements(page(given, tmp_path)).text.split())
    for words in (
        "What int8 does differently",
        "Of 400 held-out rows, 30 that the source has right are lost, 0 are gained, 0 are wrong in another way. "
        "Chance does not explain that (McNemar's exact test: p = 1.9e-09). Worse beyond chance: cat",
        "Half of 400 rows move by at most 0, 99 % by 1.5, all by 1.5",
        "Expected calibration error (15 bins; Guo et al. 2017): source 0.2689, variant",
        "0, 1, 2, 3, 4, 5, 6, 7 and 22 more",
        "Adversarial rows, transferred from the source",
        "Occlusion: correlation 0.987 (median of 9 rows; one in ten below 0.810)",
        "something was not asked.",
    ):
        assert words in text
    bare = msgspec.structs.replace(given, deltas=())
    assert "does differently" not in page(bare, tmp_path)


def test_one_that_changed_nothing_is_said_to_have_changed_nothing(tmp_path: Path) -> None:
    alike = {"y": np.ones((3, 2), np.float32)}
    given = msgspec.structs.replace(report(), deltas=(compare("fp32", alike, alike),))
    text = " ".join(Elements(page(given, tmp_path)).text.split())
    assert "No labels came with the model" in text
    assert "Half of 3 rows move by at most 0, 99 % by 0, all by 0; the source's y reach 1." in text


def test_every_picture_of_the_deltas_is_well_formed_and_inside_its_frame(tmp_path: Path) -> None:
    drawn = figures(deltas())
    assert drawn.slices is not None
    [worse] = [each for each in drawn.slices.whiskers if each.part.pairs.worse and each.part.kind == "class"]
    assert drawn.slices.zero < worse.low < worse.at < worse.high < drawn.slices.width
    assert drawn.reliability is not None
    for panel in (*drawn.histograms, drawn.reliability, *drawn.corruptions, *drawn.attacks):
        dots = [dot for line in panel.lines for dot in line.dots]
        assert all(panel.left <= dot.x <= panel.right and panel.top <= dot.y <= panel.bottom for dot in dots)
        assert all(panel.top <= bar.y and bar.y + bar.height == pytest.approx(panel.bottom) for bar in panel.bars)
        assert dots or panel.bars
    assert [dot.marked for dot in drawn.corruptions[0].lines[1].dots] == [False, True]
    (_, (picture, before, after)), (_, words) = drawn.examples
    assert [box.colour for box in picture.boxes] == ["#000000", "#ff0009"] * 2
    assert [(box.colour, box.opacity) for box in before.boxes] == [("for", 1), ("against", 0.5), ("for", 0.25)]
    assert [(word.text, word.strength, word.against) for word in words[0].words] == [
        ("bow", 1, False),
        ("wow", 0.5, True),
    ]
    assert before.boxes == after.boxes
    pictures = re.findall(r"<svg.*?</svg>", page(report(), tmp_path), re.DOTALL)
    assert len(pictures) == 10
    assert {ET.fromstring(each).tag for each in pictures} == {"svg"}


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
    svg = re.search(r"<svg.*?</svg>", page(report(), tmp_path), re.DOTALL)
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


def test_every_part_of_the_channels_that_was_tried_is_shown_or_why_none_was(tmp_path: Path) -> None:
    tried = Sparsities(
        rows=135, taught=(Taught(percent=20, part=0.4375, lost=0.0125), Taught(percent=60, part=0.0625, lost=0.25)),
        built=("onnx-cpu-int8-pruned-20-static",), cut_short=True,
    )  # fmt: skip
    text = Elements(page(msgspec.structs.replace(report(), sparsities=tried), tmp_path)).text
    for words in (
        "2 parts of the channels were taken out", "asked 135 rows", "there was no time for all of it",
        "Of the last came onnx-cpu-int8-pruned-20-static.", "20 %", "44 %", "0.0125", "60 %", "6 %", "0.2500",
    ):  # fmt: skip
        assert words in text
    none = Sparsities(why_not="the data set <b> is not here")
    text = Elements(page(msgspec.structs.replace(report(), sparsities=none), tmp_path)).text
    assert "Nothing was tried: the data set <b> is not here." in text
    assert "How many channels may go" not in Elements(page(report(), tmp_path)).text


def test_every_form_that_was_searched_is_shown_and_the_front_is_marked(tmp_path: Path) -> None:
    given = report()
    text = Elements(page(given, tmp_path)).text
    for words in (
        "3 forms of static, each tried on 269 rows, by Optuna with the seed 17; then the time was over.", "0.0123",
        "12.5 %", "static-33ppm", "Nothing: there is nothing to search.",
    ):  # fmt: skip
        assert words in text
    drawn = scattered(given.searches[0])
    beaten, *front = drawn.dots
    assert beaten.trial.cut_ppm == 900
    assert {each.trial.cut_ppm for each in front} == {1, 33}
    plain, kept = sorted(front, key=lambda dot: dot.x)
    assert plain.x == drawn.left
    assert plain.y < kept.y == drawn.bottom, "what loses more is drawn higher"
    assert scattered(given.searches[1]).dots == ()
