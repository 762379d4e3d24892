"""Steps in processes of their own: what goes wrong there costs that step alone, and can be tried again by hand.

The step is somebody's factory, which may do whatever it wants.
"""

import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from seatrial.errors import ConversionFailed
from seatrial_export import foreign
from seatrial_export.child import ANSWER, JOB, LOG, Limits, environment
from tests.conditions import until

LIMITS = Limits(time_s=60, memory_bytes=2**31, threads=1)


def run_factory(body: str, folder: Path, *, limits: Limits = LIMITS, given_up: threading.Event | None = None) -> str:
    """Have a child call a factory with this body; the reason that it failed."""
    folder.mkdir(exist_ok=True)
    (folder / "theirs.py").write_text(f"import os, sys, time\n\ndef make():\n    {body}\n")
    job = foreign.Job(source="theirs:make", path=str(folder))
    with pytest.raises(ConversionFailed) as failed:
        foreign.to_program(job, folder=folder / "child", limits=limits, given_up=given_up)
    assert failed.value.log == str(folder / "child" / LOG)
    assert failed.value.command in str(failed.value)
    return failed.value.reason


def test_a_crash_is_told_by_its_signal_and_the_log_has_where(tmp_path: Path) -> None:
    assert run_factory("os.abort()", tmp_path) == "crashed with SIGABRT"
    log = (tmp_path / "child" / LOG).read_text()
    assert "Fatal Python error: Aborted" in log
    assert "theirs.py" in log


def test_an_exit_without_an_answer_is_told(tmp_path: Path) -> None:
    assert run_factory("os._exit(7)", tmp_path) == "ended with exit code 7 and no answer"
    assert run_factory("sys.exit(0)", tmp_path / "again") == "ended with exit code 0 and no answer"


def test_an_exception_is_told_in_a_line_and_its_traceback_is_in_the_log(tmp_path: Path) -> None:
    assert run_factory(r"raise ValueError('first\nsecond')", tmp_path) == "ValueError: first"
    assert "second" in (tmp_path / "child" / LOG).read_text()


def test_a_step_that_hangs_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    limits = Limits(time_s=1, memory_bytes=2**31, threads=1)
    started = time.monotonic()
    assert run_factory("time.sleep(1000)", tmp_path, limits=limits) == "did not finish within 1 s and was killed"
    assert time.monotonic() - started < 20


def test_a_step_that_eats_memory_is_killed_together_with_those_that_eat_for_it(tmp_path: Path) -> None:
    limits = Limits(time_s=60, memory_bytes=300 * 2**20, threads=1)
    eat = "kept = b'x' * 400_000_000; time.sleep(1000)"
    assert "MiB of memory, more than the 300 allowed" in run_factory(eat, tmp_path, limits=limits)
    helped = (
        f'child = __import__("subprocess").Popen([sys.executable, "-c", "import time; {eat}"]); '
        'open("pid", "w").write(str(child.pid)); time.sleep(1000)'
    )
    assert "MiB of memory, more than the 300 allowed" in run_factory(helped, tmp_path / "helped", limits=limits)
    helper = int((tmp_path / "helped" / "child" / "pid").read_text())
    until(lambda: not psutil.pid_exists(helper) or psutil.Process(helper).status() == psutil.STATUS_ZOMBIE)


def test_a_step_is_killed_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    given_up = threading.Event()

    def give_up() -> None:
        until((tmp_path / "child" / "here").exists)
        given_up.set()

    threading.Thread(target=give_up).start()
    body = "open('here', 'w').close(); time.sleep(1000)"
    assert run_factory(body, tmp_path, given_up=given_up) == "was killed, because the export ended without it"


def test_the_printed_command_runs_the_same_step_again(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("def make():\n    raise KeyError('again')\n")
    job = foreign.Job(source="theirs:make", path=str(tmp_path))
    with pytest.raises(ConversionFailed) as failed:
        foreign.to_program(job, folder=tmp_path / "child", limits=LIMITS)
    (tmp_path / "child" / ANSWER).unlink()
    again = subprocess.run(shlex.split(failed.value.command), capture_output=True, text=True, cwd="/", check=True)
    assert "KeyError: 'again'" in again.stderr
    assert b"KeyError" in (tmp_path / "child" / ANSWER).read_bytes()


def test_a_child_sees_no_credentials_and_works_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("ANYTHING_ELSE", "secret")
    reason = run_factory(
        "raise ValueError(' '.join(sorted(os.environ)) + ' in ' + os.getcwd() + ' ' + str('secret' in str(os.environ)))",
        tmp_path,
    )
    assert reason.endswith(f"in {tmp_path / 'child'} False")
    assert "OMP_NUM_THREADS" in reason
    assert environment({"LANG": "C", "TOKEN": "x"}, threads=3, home=tmp_path) == {
        "LANG": "C", "HOME": str(tmp_path), "OMP_NUM_THREADS": "3", "PYTHONHASHSEED": "0", "PYTHONFAULTHANDLER": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip


def test_a_factory_has_no_network_where_the_kernel_allows_to_take_it_away(tmp_path: Path) -> None:
    reason = run_factory("raise ValueError(sorted(name for _, name in __import__('socket').if_nameindex()))", tmp_path)
    can = subprocess.run(
        [sys.executable, "-c", "from seatrial_export.foreign import leave_network; print(leave_network())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    outside = subprocess.run(
        [sys.executable, "-c", "import socket; print(sorted(name for _, name in socket.if_nameindex()))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = "['lo']" if can.stdout.strip() == "True" else outside.stdout.strip()
    assert reason == f"ValueError: {expected}"


PARENT = """
import sys
from pathlib import Path
from seatrial_export import foreign
from seatrial_export.child import Limits
folder = Path(sys.argv[1])
foreign.to_program(
    foreign.Job(source="theirs:make", path=str(folder)), folder=folder / "child",
    limits=Limits(time_s=1000, memory_bytes=2**31, threads=1),
)
"""


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "import os, time\n\ndef make():\n    open('new', 'w').write(str(os.getpid()))\n    os.rename('new', 'pid')\n"
        "    time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    pid = tmp_path / "child" / "pid"
    until(pid.exists)
    child = psutil.Process(int(pid.read_text()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_an_answer_that_is_none_is_told(tmp_path: Path) -> None:
    """As after a disk that was full: half a JSON document."""
    body = f"open({ANSWER!r}, 'w').write('{{\"answer\": {{\"network\"'); os._exit(0)"
    assert "gave an answer that cannot be read" in run_factory(body, tmp_path)
    assert (tmp_path / "child" / JOB).exists()
