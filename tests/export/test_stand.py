"""Engines in processes of their own: timed for real, and what goes wrong in one costs that one alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from seatrial.bundle import Bundle
from seatrial.errors import ConversionFailed, EngineFailed
from seatrial_export import child
from seatrial_export.child import Limits
from seatrial_export.samples import write_arrays
from seatrial_export.stand import FRUGAL, IMPORTED_AHEAD, Mounted, Stand, Terms
from tests.conditions import until
from tests.export.models import one_row_only, some_rows
from tests.serving.models import LinearBundle, linear
from tests.tools import absent

LIMITS = Limits(time_s=60, memory_bytes=2**31, threads=1)


def terms(*, limits: Limits = LIMITS, call_s: float = 30) -> Terms:
    return Terms.of(limits, threads=1, call_s=call_s)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stand")


@pytest.fixture(scope="module")
def stand(place: Path) -> Iterator[Stand]:
    with Stand(place, terms()) as stand:
        yield stand


@pytest.fixture(scope="module")
def bundle(place: Path) -> Bundle:
    return LinearBundle().write(place / "bundles")


@pytest.fixture(scope="module")
def one(place: Path) -> Path:
    write_arrays(place / "one.npz", some_rows(1))
    return place / "one.npz"


@pytest.fixture
def mounted(stand: Stand, bundle: Bundle, one: Path) -> Iterator[Mounted]:
    with closing(stand.mount(bundle, inputs=one)) as mounted:
        yield mounted


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_an_engine_tells_how_long_each_call_took_and_what_it_costs_to_have_it(mounted: Mounted, one: Path) -> None:
    took = mounted.call(one, 5)
    assert len(took) == 5
    assert all(0 < ms < 1000 for ms in took)
    assert 0 < mounted.load_s < 10
    assert 2**16 < mounted.memory_bytes < 2**28


def test_its_process_has_its_own_library_and_nothing_of_training_and_keeps_to_its_core(mounted: Mounted) -> None:
    maps = Path(f"/proc/{mounted.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    assert os.sched_getaffinity(mounted.pid) == {max(os.sched_getaffinity(0))}
    assert len(list(Path(f"/proc/{mounted.pid}/task").iterdir())) == 1


def test_large_inputs_are_not_the_engines_memory(mounted: Mounted, one: Path, place: Path) -> None:
    mounted.call(one, 1)
    before = mounted.memory_bytes
    rows = some_rows(2**20)
    write_arrays(place / "many.npz", rows)
    mounted.call(place / "many.npz", 1)
    assert mounted.memory_bytes < before + rows["x"].nbytes, "its outputs were three quarters of that"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_told_by_its_signal_and_the_others_go_on(
    number: signal.Signals, stand: Stand, bundle: Bundle, one: Path
) -> None:
    with closing(stand.mount(bundle, inputs=one)) as other, closing(stand.mount(bundle, inputs=one)) as mounted:
        pid = mounted.pid
        os.kill(pid, number)
        with pytest.raises(ConversionFailed) as failed:
            mounted.call(one, 1)
        assert failed.value.reason == f"crashed with {number.name}"
        assert gone(pid)
        assert len(other.call(one, 2)) == 2
    assert Path(failed.value.log).is_file()


def test_one_that_hangs_is_killed_when_its_time_is_over(place: Path, bundle: Bundle, one: Path) -> None:
    with Stand(place / "hang", terms(call_s=0.3)) as stand, closing(stand.mount(bundle, inputs=one)) as mounted:
        pid = mounted.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ConversionFailed, match=r"did not answer within 0.3 s and was killed"):
            mounted.call(one, 1)
        assert gone(pid)


def test_one_that_eats_memory_is_killed(place: Path, bundle: Bundle, one: Path) -> None:
    """While it is opened, or when it is asked."""
    limits = Limits(time_s=60, memory_bytes=2**20, threads=1)
    killed = pytest.raises(ConversionFailed, match="MiB of memory, more than the 1 allowed, and was killed")
    with Stand(place / "hunger", terms(limits=limits)) as stand, killed:
        stand.mount(bundle, inputs=one).call(one, 1)


def test_a_model_that_cannot_be_opened_or_asked_is_told_in_the_engines_words(
    stand: Stand, place: Path, one: Path
) -> None:
    nonsense = place / "nonsense.onnx"
    nonsense.write_bytes(b"no model")
    bundle = LinearBundle(version="2", model=nonsense).write(place / "bundles")
    with pytest.raises(ConversionFailed, match="cannot load"):
        stand.mount(bundle, inputs=one)
    bundle = LinearBundle(version="3", model=one_row_only(place / "one-row.onnx")).write(place / "bundles")
    write_arrays(place / "two.npz", some_rows(2))
    mounted = stand.mount(bundle, inputs=one)
    with pytest.raises(ConversionFailed, match="ONNX Runtime refused the batch"):
        mounted.call(place / "two.npz", 1)


def test_no_process_is_left_when_the_block_ends_or_the_library_dies(place: Path, bundle: Bundle, one: Path) -> None:
    with Stand(place / "end", terms()) as stand:
        left = stand.mount(bundle, inputs=one)
        pid = left.pid
        library = psutil.Process(pid).parent()
        assert library is not None
        library.kill()
        until(lambda: gone(pid))
        with pytest.raises(ConversionFailed, match="crashed with SIGKILL"):
            left.call(one, 1)
        with pytest.raises(ConversionFailed, match="the process that imports its library crashed with SIGKILL"):
            stand.mount(bundle, inputs=one)
    with Stand(place / "again", terms()) as stand:
        left = stand.mount(bundle, inputs=one)
        pid = left.pid
    until(lambda: gone(pid))
    assert left.close() == -signal.SIGKILL


@pytest.mark.parametrize(
    "package", [each if each != "torch" else pytest.param(each, marks=pytest.mark.slow) for each in IMPORTED_AHEAD]
)
def test_what_is_imported_ahead_of_a_fork_starts_no_thread(package: str, tmp_path: Path) -> None:
    counted = f"import os, importlib; importlib.import_module('{package}'); print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", counted], capture_output=True, text=True, check=False,
        env=child.environment(os.environ, threads=1, home=tmp_path) | FRUGAL,
    )  # fmt: skip
    if "ModuleNotFoundError" in done.stderr:
        absent(f"{package} is not installed")
    assert done.stdout.strip() == "1", done.stderr


# Asked, not timed


def test_an_engine_is_asked_on_any_core_and_refuses_what_it_cannot_take_without_ending(
    stand: Stand, place: Path
) -> None:
    with stand.opened(LinearBundle().write(place / "asked")) as predict:
        rows = some_rows(7)
        assert np.array_equal(predict(rows)["y"], linear(rows["x"]))
        with pytest.raises(EngineFailed, match="ONNX Runtime refused the batch"):
            predict({"x": rows["x"][:, :2]})
        assert np.array_equal(predict(rows)["y"], linear(rows["x"]))


def test_one_that_crashes_or_hangs_while_it_is_asked_costs_itself(place: Path, bundle: Bundle) -> None:
    rows, brief = some_rows(1), terms(call_s=0.3)
    with Stand(place / "asked-and-lost", brief) as stand, stand.opened(bundle) as other:
        library = stand.prepare("onnxruntime")
        for number, told in ((signal.SIGSEGV, "crashed with SIGSEGV"), (signal.SIGSTOP, "did not answer within 0.3 s")):
            with closing(Mounted(library, bundle, brief)) as mounted:
                os.kill(mounted.pid, number)
                with pytest.raises(ConversionFailed, match=told):
                    mounted.predict(rows)
        assert np.array_equal(other(rows)["y"], linear(rows["x"]))
