"""INT8 as NNCF makes it, run by OpenVINO."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from seatrial_export.build import Built
from seatrial_export.candidate import Lost, Verdict, named
from seatrial_export.trial import Verified, ask_source, examine
from tests.export.models import linear_source, some_rows
from tests.export.test_build import built

[NNCF] = named(["openvino-cpu-int8-nncf"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nncf") is None, reason="seatrial[nncf] is not installed")
def test_nncf_makes_int8_that_answers_nearly_as_the_source_and_tells_nobody(tmp_path: Path) -> None:
    source = linear_source(tmp_path, rows=some_rows(300))
    [made] = built(source, tmp_path / "once", (NNCF,))
    assert isinstance(made, Built), made
    graph = made.model.read_text()
    assert graph.count('type="FakeQuantize"') == 1, "of what goes into the product"
    assert graph.count('element_type="i8"') == 1, "its weights"
    assert {path.name for path in made.model.parent.iterdir()} == {
        "model.xml", "model.bin", "calibration.npz", "job.json", "answer.json", "log.txt",
    }, "telemetry would have left a folder with the number that it gave us"  # fmt: skip

    found = examine(made, source, ask_source(source), store=tmp_path / "bundles", threads=1)
    assert isinstance(found, Verified), found
    assert {"model.xml", "model.bin"} <= set(found.bundle.manifest.files)
    weights = made.model.with_name("model.bin")
    assert found.bundle.model_bytes == made.model.stat().st_size + weights.stat().st_size
    assert 0.999 < found.proof.agreement.cosine < 1
    assert found.quality.value > 0.97, "few rows have their largest output elsewhere"

    [again] = built(source, tmp_path / "again", (NNCF,))
    assert isinstance(again, Built)
    assert again.model.read_bytes() == made.model.read_bytes()


@pytest.mark.skipif(find_spec("nncf") is not None, reason="seatrial[nncf] is installed")
def test_without_nncf_the_report_says_what_brings_it(tmp_path: Path) -> None:
    [lost] = built(linear_source(tmp_path), tmp_path, (NNCF,))
    assert isinstance(lost, Lost)
    assert lost.verdict is Verdict.NOT_APPLICABLE
    assert lost.reason == "the Python package 'nncf' is not installed; pip install 'seatrial[nncf]' brings it"
