"""What all tests share: one migrated MLflow store, made once a run and copied for each home; and how they share workers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

from seatrial.settings import Settings
from seatrial_export.web import KNOWN_VERSION, obstacle_to_building
from tests.digits import ExportedDigits
from tests.tools import absent, tool

ROOT = Path(__file__).parent.parent

# The workers of a run share the cores: torch's threads that wait for one another sleep, instead of spinning in the way of
# the others. Read when torch is imported, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# What takes long on a busy machine is no fault: how long is measured where it matters.
hypothesis.settings.register_profile("seatrial", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("seatrial")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module go to one worker: a server that each worker starts is started twice."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None and _shares_with_its_module(item):
            item.add_marker(pytest.mark.xdist_group(".".join(item.path.relative_to(ROOT).with_suffix("").parts)))


def _shares_with_its_module(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    return any(defined[-1].scope == "module" for defined in item._fixtureinfo.name2fixturedefs.values())


@pytest.fixture(autouse=True)
def _no_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test asks beyond this machine, and reading who signs the world's certificates takes httpx 30 ms for each client."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path_factory.getbasetemp()))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees the defaults, whatever the shell that runs it has set."""
    for name in list(os.environ):
        if name.startswith("SEATRIAL_") or (name.startswith("MLFLOW_") and name != "MLFLOW_DISABLE_TELEMETRY"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def migrated_store(shared: Path) -> Path:
    """An empty MLflow database at the current schema: migrating one costs seconds, copying it nothing."""
    with once(shared, "store") as place:
        if not place.exists():
            place.mkdir()
            subprocess.run(
                [sys.executable, "-c", MIGRATE, str(place)], check=True, env=os.environ | {"SEATRIAL_HOME": str(place)}
            )
    return place / "mlflow.db"


@pytest.fixture(scope="session")
def exported_digits(shared: Path, migrated_store: Path) -> ExportedDigits:
    """The digits model, trained and exported: for reading. A test that writes to its registry takes a copy."""
    with once(shared, "digits") as place:
        digits = ExportedDigits(home=place)
        if not digits.made:
            place.mkdir()
            shutil.copyfile(migrated_store, place / "mlflow.db")
            subprocess.run([sys.executable, "-m", "tests.digits", str(place)], check=True, cwd=ROOT)
    return digits


@pytest.fixture(scope="session")
def with_web(shared: Path) -> Settings:
    """Settings that have ONNX Runtime Web, from the npm registry."""
    npm = tool("npm")
    with once(shared, "npm") as place:
        settings = Settings(home=place)
        if obstacle_to_building(settings):
            package = f"onnxruntime-web@{KNOWN_VERSION}"
            install = [
                npm,
                "install",
                "--silent",
                "--ignore-scripts",
                "--omit=optional",
                "--prefix",
                str(place),
                package,
            ]
            if subprocess.run(install, check=False, timeout=240).returncode:
                absent(f"npm cannot install {package}")
    return settings


MIGRATE = """
import sys
from pathlib import Path
from seatrial.registry.embedded import connect
from seatrial.settings import Settings
connect(Settings(home=Path(sys.argv[1])))
"""


class once:  # noqa: N801 - reads as a statement
    """Hold a lock named `name` while the caller looks whether `shared/name` exists and makes it."""

    def __init__(self, shared: Path, name: str) -> None:
        import filelock

        self._place, self._lock = shared / name, filelock.FileLock(shared / f"{name}.lock")

    def __enter__(self) -> Path:
        self._lock.acquire()
        return self._place

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.fixture
def home(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, with an empty registry; SEATRIAL_HOME points at it."""
    place = tmp_path / "home"
    place.mkdir()
    shutil.copyfile(migrated_store, place / "mlflow.db")
    monkeypatch.setenv("SEATRIAL_HOME", str(place))
    return place


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home)
