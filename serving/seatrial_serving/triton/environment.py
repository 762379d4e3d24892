"""Triton's own virtual environment: the real `tritonserver` from the PyPI package `nvidia-pytriton`, apart from ours.

Apart, because it wants a numpy of its own. Our engine code is copied into it, so that what serves there is what was
measured here.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from seatrial.errors import ConversionFailed, EngineUnavailable
from seatrial.files import directory_aside, put_in_place
from seatrial.settings import Settings

PYTRITON = "nvidia-pytriton==0.7.0"
NEEDED_BY_OUR_ENGINES = ("msgspec", "onnxruntime", "orjson")
OUR_PACKAGES = ("seatrial", "seatrial_serving")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TritonEnvironment:
    """A virtual environment that may or may not be there yet."""

    path: Path

    @staticmethod
    def of(settings: Settings) -> "TritonEnvironment":
        return TritonEnvironment(settings.triton_environment)

    @property
    def installed(self) -> bool:
        return self.server.exists() and (self.backends / "python" / "triton_python_backend_stub").exists()

    @property
    def server(self) -> Path:
        return self._triton / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """Triton's backends with the Python stub in place, which the package keeps elsewhere."""
        return self.path / "backends"

    def install(self, *, tell: Tell) -> None:
        """Create it anew, whole or not at all. Takes a minute and half a gigabyte, and a package registry."""
        tell(f"installing {PYTRITON} into {self.path}")
        with directory_aside(self.path.parent) as aside:
            _run([sys.executable, "-m", "venv", str(aside)])
            pins = [f"{name}=={version(name)}" for name in NEEDED_BY_OUR_ENGINES]
            _run(
                [
                    str(aside / "bin/python"),
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    PYTRITON,
                    *pins,
                ]
            )
            made = TritonEnvironment(aside)
            made._place_backends()
            shutil.rmtree(self.path, ignore_errors=True)
            put_in_place(aside, self.path)
        tell("installed")

    def require(self) -> None:
        """Raises `EngineUnavailable` where it is not installed; otherwise brings our engine code in it up to date."""
        if not self.installed:
            raise EngineUnavailable(f"there is no Triton in {self.path}; put it there with: seatrial triton install")
        for package in OUR_PACKAGES:
            with resources.as_file(resources.files(package)) as origin:
                shutil.copytree(
                    origin, self._site / package, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
                )

    def variables(self) -> dict[str, str]:
        """The environment variables that the server needs to find its libraries and its Python."""
        libraries = (self._site / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR") or ""))
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PYTHONPATH": str(self._site),
            "PYTHONHOME": sys.base_prefix,
            "PATH": f"{self.path / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def _place_backends(self) -> None:
        shutil.copytree(self._triton / "backends", self.backends)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = self._triton / "python_backend_stubs" / python / "triton_python_backend_stub"
        if not stub.exists():
            raise EngineUnavailable(f"{PYTRITON} has no Triton stub for Python {python}")
        shutil.copy2(stub, self.backends / "python")

    @property
    def _site(self) -> Path:
        return self.path / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    @property
    def _triton(self) -> Path:
        return self._site / "pytriton" / "tritonserver"


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConversionFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
