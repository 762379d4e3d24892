"""The target `coreml`: built here, run on macOS alone. What was never run is shown, kept, and cannot be chosen or promoted."""

import platform
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

from seatrial.bundle import EngineSpec, open_bundle
from seatrial.bundle.store import file_sha256
from seatrial.engines import obstacle, obstacle_to_building
from seatrial.errors import ConversionFailed, EngineFailed, EngineUnavailable, GateFailed, NotInRegistry
from seatrial.registry import BUNDLE_TAG, ModelRef
from seatrial.registry.bundles import fetch_bundle
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_export.candidate import CANDIDATES, COREML, Verdict
from seatrial_export.export import Exported, attempt
from seatrial_export.publish import VERDICT_TAG
from seatrial_export.register import register
from seatrial_export.request import Request
from seatrial_export.summary import summary
from seatrial_models.program import to_program
from seatrial_promotion.gates import NEVER_RUN
from seatrial_promotion.promote import Promotion, promote
from seatrial_serving.engines import open_engine
from tests.serving.engine_bundles import linear_program
from tests.serving.models import SIGNATURE

REF = ModelRef(name="linear", version="1")
[ON_APPLE] = [each for each in CANDIDATES if each.target == COREML]
on_macos = platform.system() == "Darwin"
slow = pytest.mark.slow


def test_without_coremltools_it_is_said_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seatrial.engines.find_spec", lambda _: None)
    why = "the Python package 'coremltools' is not installed; pip install 'seatrial[coreml]' brings it"
    assert obstacle_to_building(EngineSpec(name="coreml")) == why
    assert obstacle(EngineSpec(name="coreml")) == why


@slow
@pytest.mark.skipif(on_macos, reason="it runs here")
def test_where_it_is_not_macos_it_can_be_built_and_not_run() -> None:
    pytest.importorskip("coremltools")
    assert obstacle_to_building(EngineSpec(name="coreml")) is None
    assert obstacle(EngineSpec(name="coreml")) == f"it runs on macOS alone, and this is {platform.system()}"


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layer(x)
        return answer


def written(place: Path, module: torch.nn.Module) -> Path:
    from seatrial_export import coreml

    place.mkdir()
    program = to_program(module.eval(), {"x": torch.ones(3, 4)}, SIGNATURE)
    with chdir(place):
        return place / coreml.write(program, SIGNATURE)


@slow
@pytest.mark.filterwarnings("ignore")
def test_a_package_has_our_names_and_sizes_and_is_the_same_again_and_after_it_was_opened(tmp_path: Path) -> None:
    ct = pytest.importorskip("coremltools")
    torch.manual_seed(0)
    module = Linear()
    one, other = written(tmp_path / "one", module), written(tmp_path / "other", module)
    description = ct.models.MLModel(str(one.parent), skip_model_load=True).get_spec().description
    [x], [y] = description.input, description.output
    assert (x.name, y.name) == ("x", "y")
    ranges = [(each.lowerBound, each.upperBound) for each in x.type.multiArrayType.shapeRange.sizeRanges]
    assert ranges == [(1, 64), (4, 4)]
    files = sorted(path.relative_to(one.parent) for path in one.parent.rglob("*") if path.is_file())
    assert [file_sha256(one.parent / path) for path in files] == [file_sha256(other.parent / path) for path in files]


@slow
@pytest.mark.filterwarnings("ignore")
def test_an_axis_that_became_fixed_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    from seatrial_export import coreml

    program = torch.export.export(Linear().eval(), (torch.ones(3, 4),))
    with chdir(tmp_path), pytest.raises(ConversionFailed, match="the axis 'batch' of 'x' became fixed"):
        coreml.write(program, SIGNATURE)


@slow
@pytest.mark.filterwarnings("ignore")
def test_integers_without_room_in_core_ml_are_refused_and_the_others_kept() -> None:
    pytest.importorskip("coremltools")
    from seatrial_serving.engines.coreml import _as_known

    assert _as_known(np.array([[-(2**31), 2**31 - 1]])).tolist() == [[-(2**31), 2**31 - 1]]
    assert _as_known(np.array([7])).dtype == np.int32
    with pytest.raises(EngineFailed, match="integers of more than 32 bits"):
        _as_known(np.array([2**31]))


# What is unverified


@pytest.fixture
def exported(settings: Settings, tmp_path: Path) -> Exported:
    pytest.importorskip("coremltools")
    if on_macos:
        pytest.skip("it runs here, and is not unverified")
    settings = settings.model_copy(
        update={"export": settings.export.model_copy(update={"measure_s": 0.1, "threads": 1})}
    )
    register(str(linear_program(tmp_path / "linear.pt2")), name="linear", settings=settings, trust=True)
    return attempt(Request(ref=REF, targets=(COREML,)), settings)


@slow
def test_what_cannot_be_run_here_is_unverified_kept_and_never_chosen(exported: Exported, settings: Settings) -> None:
    [row] = exported.report.rows
    assert (row.name, row.verdict) == (ON_APPLE.name, Verdict.UNVERIFIED)
    assert row.reason == f"it was built and never run: it runs on macOS alone, and this is {platform.system()}"
    assert row.size_bytes is not None
    assert row.size_bytes > 500
    assert (exported.bundles, exported.unmet, exported.report.chosen) == ({}, (COREML,), {})
    assert f"files    {row.name}, unverified: {exported.artifacts}/unverified/{row.name}" in summary(exported)
    registry = EmbeddedRegistry(settings)
    outputs = registry.client.get_run(exported.report.run_id).outputs
    assert outputs is not None
    [output] = outputs.model_outputs
    assert registry.client.get_logged_model(output.model_id).tags[VERDICT_TAG] == "unverified"
    kept = open_bundle(Path(exported.artifacts.removeprefix("file://")) / row.files)
    kept.verify()
    assert kept.manifest.graphs == {"main": "model.mlpackage/Manifest.json"}
    with pytest.raises(EngineUnavailable, match="it runs on macOS alone"):
        open_engine(kept, threads=1)


@slow
def test_what_is_unverified_cannot_be_promoted_even_where_somebody_names_it_by_hand(
    exported: Exported, settings: Settings
) -> None:
    settings = settings.model_copy(update={"registry": settings.registry.model_copy(update={"target": COREML})})
    registry = EmbeddedRegistry(settings)
    promotion = Promotion(name="linear", version="1", waivers={"bundle": "I know better", "quality": "I do"})
    with pytest.raises(NotInRegistry):
        promote(promotion, settings)
    [row] = exported.report.rows
    kept = open_bundle(Path(exported.artifacts.removeprefix("file://")) / row.files)
    registry.client.log_artifacts(exported.report.run_id, str(kept.path), f"bundles/{kept.digest.replace(':', '-')}")
    registry.client.set_model_version_tag("linear", "1", "seatrial.export_run", exported.report.run_id)
    registry.client.set_model_version_tag("linear", "1", BUNDLE_TAG + COREML, kept.digest)
    version = registry.resolve(REF)
    assert fetch_bundle(registry, version, target=COREML, store=settings.bundles).digest == kept.digest
    with pytest.raises(GateFailed, match=NEVER_RUN):
        promote(promotion, settings)
    assert registry.resolve(REF).aliases == ()
