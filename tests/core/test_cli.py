import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from seatrial import __version__, cli
from seatrial.errors import BudgetNotMet, GateFailed, MissingExtra, SeatrialError, UnknownModel

ROOT = Path(__file__).parent.parent.parent


def seatrial(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "seatrial", *arguments], capture_output=True, text=True, check=False)


def test_version() -> None:
    assert seatrial("--version").stdout == f"seatrial, version {__version__}\n"


def test_wrong_usage_exits_with_2_and_shows_the_way() -> None:
    wrong = seatrial("bundel")
    assert wrong.returncode == 2
    assert "No such command 'bundel'" in wrong.stderr


def test_an_error_of_ours_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    failed = seatrial("bundle", "inspect", str(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr.startswith("BundleCorrupt: ")
    assert "Traceback" not in failed.stderr


def test_scripts_get_errors_as_json(tmp_path: Path) -> None:
    failed = seatrial("bundle", "inspect", "--json", str(tmp_path))
    assert json.loads(failed.stdout)["error"]["type"] == "BundleCorrupt"


@pytest.mark.parametrize(
    ("error", "code"),
    [(UnknownModel("x"), 1), (BudgetNotMet("x"), 3), (GateFailed("x"), 3), (MissingExtra("x", extra="y"), 1)],
)
def test_exit_codes(error: SeatrialError, code: int) -> None:
    assert cli._exit_code(error) == code


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(compile("import no_such_module", "<test>", "exec"), {"__name__": "seatrial_training.fit"})
    assert "pip install 'seatrial[training]'" in str(cli._as_missing_extra(caught.value))


def test_doctor_reports_and_exits_by_health() -> None:
    asked = seatrial("doctor", "--json")
    diagnosis = json.loads(asked.stdout)
    assert (asked.returncode == 0) == diagnosis["healthy"]
    assert diagnosis["machine"]["cores"] >= 1
    assert {"home", "registry", "http_port"} <= {finding["subject"] for finding in diagnosis["findings"]}


def test_the_constraints_are_exact_versions_and_nothing_else() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line and " " not in line and "+" not in line and "://" not in line for line in lines)
    assert not [line for line in lines if line.startswith("torch==")]


def test_the_pins_that_hold_the_protocol_libraries_together_are_kept() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert pins["tritonclient"] == "2.73.0"
    assert int(pins["protobuf"].split(".")[0]) < 7
    assert {pins[f"grpcio-{part}"] for part in ("health-checking", "reflection", "tools")} == {"1.81.1"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "protobuf>=6.33.5,<7" in extras["serving"]
