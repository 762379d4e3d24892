"""`seatrial demo`, the spine: all of it works together, and nothing is left running."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_demo_lives_the_whole_life_and_leaves_no_process(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-m", "seatrial", "demo", "--home", str(home), "--json"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    said = json.loads(done.stdout)
    assert said["accuracy"] >= 0.98
    assert said["correct"] >= said["asked"] - 2
    assert {outcome for result in said["measured"].values() for outcome in result["outcomes"]} == {"ok"}
    assert said["served"] >= sum(result["requests"] for result in said["measured"].values())
    assert processes_of(home) == []

    environment = os.environ | {"SEATRIAL_HOME": str(home)}
    status = subprocess.run(
        [sys.executable, "-m", "seatrial", "status", "--json"], capture_output=True, check=True, env=environment
    )
    assert said["bundle"] in status.stdout.decode()


def processes_of(home: Path) -> list[str]:
    """Command lines that name the demo's home, or whose environment does."""
    found = []
    for process in psutil.process_iter():
        try:
            mentioned = [*process.cmdline(), *process.environ().values()]
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if any(str(home) in word for word in mentioned):
            found.append(" ".join(process.cmdline()))
    return found
