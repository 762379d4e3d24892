"""The server's end of the registry watcher outlives whatever becomes of the child."""

import logging
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from seatrial.registry import ModelRef
from seatrial.registry.events import Answered
from seatrial.settings import Registry, Settings, load_settings
from seatrial_serving.watching import _as_environment, watch

pytestmark = pytest.mark.anyio
REFS = [ModelRef.parse("linear@champion")]
DIES_AT_FIRST = """
import os, pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1])
again, text = place.exists(), b'{"type":"answered"}\\n'
place.touch()
os.write(1, text if again else text + text[:9])
time.sleep(60) if again else os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_child_killed_in_the_middle_of_a_line_costs_that_line(tmp_path: Path) -> None:
    command = sys.executable, "-c", DIES_AT_FIRST, str(tmp_path / "died")
    async with aclosing(watch(REFS, Settings(home=tmp_path), command=command)) as events:
        assert [await anext(events) for _ in range(2)] == [Answered(), Answered()]


async def test_a_child_that_cannot_be_started_is_started_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "program"

    class Mends(logging.Handler):
        """Puts the program where it should be, once it was missed."""

        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - any will do
            program.with_suffix(".new").write_text("""#!/bin/sh\necho '{"type":"answered"}'\nexec sleep 60\n""")
            program.with_suffix(".new").chmod(0o755)
            program.with_suffix(".new").rename(program)

    logger, mends = logging.getLogger("seatrial_serving.watching"), Mends()
    logger.addHandler(mends)
    try:
        async with aclosing(watch(REFS, Settings(home=tmp_path), command=[str(program)])) as events:
            assert await anext(events) == Answered()
    finally:
        logger.removeHandler(mends)
    assert "cannot be started" in caplog.text


def test_the_child_is_told_which_bundles_are_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = Registry(target="tensorrt", fallbacks=("onnx-cuda", "onnx-cpu"))
    for name, value in _as_environment(Settings(home=tmp_path, registry=wanted)).items():
        monkeypatch.setenv(name, value)
    assert load_settings().registry.targets == ("tensorrt", "onnx-cuda", "onnx-cpu")
