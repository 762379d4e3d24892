"""From the chosen variant to its bundle: what does not answer as it did, or is lost on the way, gets nowhere."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from seatrial.bundle import Bundle
from seatrial.errors import ConversionFailed
from seatrial_export.build import Built
from seatrial_export.bundling import bundle_up
from seatrial_export.candidate import CANDIDATES
from seatrial_export.child import Limits
from seatrial_export.samples import Inputs, Outputs, Predict
from seatrial_export.stand import Stand, Terms
from seatrial_export.trial import Questions, Verified, ask_source, examine
from seatrial_serving.engines.proof import prove
from tests.export.models import linear_source
from tests.export.processes import library
from tests.serving.models import linear_onnx

TERMS = Terms.of(Limits(time_s=60, memory_bytes=2**31, threads=1), threads=1, call_s=30)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundling")


@pytest.fixture(scope="module")
def questions(place: Path) -> Questions:
    return ask_source(linear_source(place))


@pytest.fixture(scope="module")
def verified(place: Path, questions: Questions) -> Verified:
    source = linear_source(place)
    found = examine(
        Built(candidate=CANDIDATES[0], model=source.program), source, questions, store=place / "provisional", threads=1
    )
    assert isinstance(found, Verified)
    return found


class Deadly(Stand):
    """Kills every engine as soon as it is open, before anybody asks it."""

    @contextmanager
    def opened(self, bundle: Bundle) -> Iterator[Predict]:
        with super().opened(bundle) as predict:
            [engine] = library("onnxruntime").children()
            os.kill(engine.pid, signal.SIGKILL)
            yield predict


def test_an_engine_that_is_lost_while_it_is_asked_is_told_and_nothing_is_kept(
    verified: Verified, questions: Questions, tmp_path: Path
) -> None:
    with (
        Deadly(tmp_path / "stand", TERMS) as stand,
        pytest.raises(ConversionFailed, match=r"^crashed with SIGKILL$") as lost,
    ):
        bundle_up(verified, questions, aside=tmp_path / "aside", store=tmp_path / "store", where=stand)
    assert Path(lost.value.log).is_file()
    assert not (tmp_path / "store").exists()


def test_one_that_is_lost_before_its_replay_is_told_and_nothing_is_kept(
    verified: Verified, questions: Questions, tmp_path: Path
) -> None:
    """The source is asked when the variant has answered, which is opened once more to replay that."""
    with Stand(tmp_path / "stand", TERMS) as stand:
        stand.prepare("onnxruntime")
        process = library("onnxruntime")

        def killing(inputs: Inputs) -> Outputs:
            process.kill()
            return questions.answer(inputs)

        with pytest.raises(ConversionFailed, match="the process that imports its library crashed with SIGKILL"):
            bundle_up(
                verified, replace(questions, answer=killing),
                aside=tmp_path / "aside", store=tmp_path / "store", where=stand,
            )  # fmt: skip
    assert len(list((tmp_path / "aside").iterdir())) == 1, "it was the replay that was lost"
    assert not (tmp_path / "store").exists()


def test_one_that_does_not_repeat_itself_gets_nowhere(verified: Verified, questions: Questions, tmp_path: Path) -> None:
    other = linear_onnx(tmp_path / "other.onnx", scale=1.01)
    changed = replace(verified, draft=replace(verified.draft, files={"model.onnx": other}))
    with Stand(tmp_path / "stand", TERMS) as stand:
        with pytest.raises(ConversionFailed, match=r"golden request 0 of .* is answered differently here"):
            bundle_up(changed, questions, aside=tmp_path / "aside", store=tmp_path / "store", where=stand)
        assert not (tmp_path / "store").exists()
        bundle = bundle_up(verified, questions, aside=tmp_path / "aside", store=tmp_path / "store", where=stand)
    assert prove(bundle) == 8
