"""The target `onnx-web`: what a browser answers is what native ONNX Runtime answers, and a folder is all that a page needs."""

import os
import secrets
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.matrix import source_of
from seatrial.bundle import Bundle, EngineSpec
from seatrial.engines import obstacle
from seatrial.errors import BundleCorrupt, EngineFailed
from seatrial.settings import Settings
from seatrial_export import web
from seatrial_export.build import Workshop, building
from seatrial_export.candidate import CANDIDATES, ONNX_CPU, ONNX_WEB, Candidate, Lost, Precision, Verdict
from seatrial_export.child import child_limits
from seatrial_export.samples import repeat
from seatrial_export.source import Source
from seatrial_export.stand import Stand, Terms
from seatrial_export.trial import Verified, ask_source, examine
from seatrial_export.verify import TOLERANCES
from seatrial_models import architecture
from seatrial_serving.engines import open_engine
from seatrial_serving.engines.web import NAME, OnnxRuntimeWeb, _Files
from tests.conditions import until
from tests.export.models import linear_source
from tests.serving.browser import page
from tests.serving.models import LinearBundle, linear
from tests.tools import absent

[ON_WEB] = [each for each in CANDIDATES if each.target == ONNX_WEB]
NATIVE = Candidate(target=ONNX_CPU, precision=Precision.FP32)


def examined(source: Source, place: Path, settings: Settings) -> list[Verified | Lost]:
    """The native variant and the page's."""
    workshop = Workshop(
        source=source, folder=place, settings=settings, limits=child_limits(settings), tell=lambda *_: None
    )
    with building([NATIVE, ON_WEB], workshop) as found:
        questions = ask_source(source)
        built = [found[each].result() for each in (NATIVE, ON_WEB)]
    store = place / "bundles"
    return [
        each if isinstance(each, Lost) else examine(each, source, questions, store=store, threads=1) for each in built
    ]


# Without a browser, or without the runtime


def runtime_of_nothing(settings: Settings) -> None:
    """The files of the npm package, empty: enough to build with."""
    for name in web.RUNTIME:
        file = settings.web_runtime / "dist" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def test_without_the_npm_package_it_is_said_what_brings_it(tmp_path: Path) -> None:
    _, lost = examined(linear_source(tmp_path), tmp_path / "place", Settings(home=tmp_path / "home"))
    assert isinstance(lost, Lost)
    assert lost.verdict is Verdict.NOT_APPLICABLE
    assert lost.reason.endswith(
        f"npm install --prefix {tmp_path / 'home'} onnxruntime-web@{web.KNOWN_VERSION} brings it"
    )


def test_without_a_browser_it_is_built_and_unverified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "home")
    runtime_of_nothing(settings)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is none of chromium" in str(obstacle(EngineSpec(name=NAME)))
    native, lost = examined(linear_source(tmp_path), tmp_path / "place", settings)
    assert isinstance(native, Verified)
    assert isinstance(lost, Lost)
    assert lost.verdict is Verdict.UNVERIFIED
    assert lost.files is not None
    assert {"model.onnx", *web.OURS, *web.RUNTIME} <= {each.name for each in lost.files.iterdir()}
    assert lost.size_bytes == (lost.files / "model.onnx").stat().st_size


# In a browser

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(with_web: Settings, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if why := obstacle(EngineSpec(name=NAME)):
        absent(why)
    linear = LinearBundle(engine=EngineSpec(name=NAME), beside=web.beside(with_web))
    return linear.write(tmp_path_factory.mktemp("web"))


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[OnnxRuntimeWeb]:
    with closing(OnnxRuntimeWeb(bundle)) as engine:
        yield engine


@slow
@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnet9", "text-transformer", "bert"])
def test_the_browser_answers_as_native_onnx_runtime_does(name: str, with_web: Settings, tmp_path: Path) -> None:
    source = source_of(architecture(name), tmp_path)
    native, page = examined(source, tmp_path / "place", with_web)
    assert isinstance(native, Verified), native
    assert isinstance(page, Verified), page
    with (
        closing(open_engine(native.bundle, threads=1)) as here,
        closing(open_engine(page.bundle, threads=1)) as browser,
    ):
        for rows in (1, 3):
            asked = repeat(source.rows, rows)
            for name, answer in here.predict(asked).items():
                equal = TOLERANCES["fp32"].equal
                np.testing.assert_allclose(browser.predict(asked)[name], answer, rtol=equal, atol=equal)


@slow
def test_the_demonstration_replays_the_golden_requests_in_the_browser_that_opens_it(
    bundle: Bundle, tmp_path: Path
) -> None:
    with closing(_Files(bundle.path)) as files, page(f"{files.url}/index.html", tmp_path) as shown:
        until(lambda: shown.run("document.getElementById('verdict')?.className"), within_s=60)
        assert shown.run("document.getElementById('title').textContent") == "linear version 1, fp32"
        said = shown.run("document.getElementById('verdict').textContent")
    assert said.startswith("1 golden requests were answered here as was verified")


@slow
@pytest.mark.usefixtures("bundle")
def test_the_demonstration_says_so_where_the_answers_are_others(with_web: Settings, tmp_path: Path) -> None:
    wrong = LinearBundle(engine=EngineSpec(name=NAME), golden_scale=1.01, beside=web.beside(with_web))
    with (
        closing(_Files(wrong.write(tmp_path / "bundles").path)) as files,
        page(f"{files.url}/index.html", tmp_path / "profile") as shown,
    ):
        until(lambda: shown.run("document.getElementById('verdict')?.className"), within_s=60)
        assert shown.run("document.getElementById('verdict').className") == "fails"
        assert "golden request 0: 'y' is" in shown.run("document.getElementById('verdict').textContent")


@slow
@pytest.mark.usefixtures("bundle")
def test_a_graph_that_is_none_is_corrupt(with_web: Settings, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    broken = LinearBundle(
        engine=EngineSpec(name=NAME), model=tmp_path / "model.onnx", beside=web.beside(with_web)
    ).write(tmp_path / "bundles")
    with pytest.raises(BundleCorrupt, match="onnxruntime-web cannot load"):
        OnnxRuntimeWeb(broken)


@slow
def test_a_browser_that_ends_is_an_engine_failure(engine: OnnxRuntimeWeb) -> None:
    x = np.ones((1, 4), np.float32)
    assert engine.predict({"x": x})["y"].tolist() == linear(x).tolist()
    engine._browser._process.kill()
    with pytest.raises(EngineFailed, match="the browser ended with exit code -9"):
        engine.predict({"x": x})


@slow
def test_nothing_of_a_browser_stays(bundle: Bundle) -> None:
    engine = OnnxRuntimeWeb(bundle)
    started = psutil.Process(engine._browser._process.pid)
    family = [started, *started.children(recursive=True)]
    profile = Path(engine._browser._profile.name)
    assert profile.exists()
    with ThreadPoolExecutor(1) as straggler:
        straggler.submit(write_for, 1.0, profile)
        engine.close()
        assert not profile.exists(), "whoever wrote there when the browser had ended"
    until(lambda: not any(each.is_running() for each in family), within_s=30)


def write_for(seconds: float, folder: Path) -> None:
    """New files, as long as there is the folder."""
    end = time.monotonic() + seconds
    with suppress(OSError):
        while time.monotonic() < end:
            (folder / secrets.token_hex()).touch()


@slow
def test_a_browser_does_not_outlive_an_engine_that_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.ones((1, 4), np.float32))
    settings = Settings(home=tmp_path)
    terms = Terms.of(child_limits(settings), threads=1, call_s=60)
    with Stand(tmp_path / "stand", terms) as stand:
        mounted = stand.mount(bundle, inputs=tmp_path / "one.npz")
        family = psutil.Process(mounted.pid).children(recursive=True)
        assert mounted.call(tmp_path / "one.npz", 2)
        assert mounted.memory_bytes > 50 * 2**20, "what the browser holds counts"
        os.kill(mounted.pid, signal.SIGKILL)
        until(lambda: not any(each.is_running() for each in family), within_s=30)
        mounted.close()


@slow
def test_a_page_is_given_no_more_than_it_knows_how_to_ask_for(bundle: Bundle) -> None:
    """Whoever does not know the address gets nothing."""
    import httpx

    with closing(_Files(bundle.path)) as files:
        assert httpx.get(f"{files.url}/bundle.json").json()["model"]["name"] == "linear"
        server = files.url.rsplit("/", 1)[0]
        for path in ("/", "/bundle.json", "/guessed/bundle.json", f"{files.url[len(server) :]}/../../bundle.jso"):
            assert httpx.get(server + path).status_code == 404
