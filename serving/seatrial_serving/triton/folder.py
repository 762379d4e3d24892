"""A Triton model repository as a source: which models and versions are in it, and what each is.

Reads directories and small files, and opens no model. Whatever is used must lie in the repository: a link that leads out of
it is refused. Nothing vouches for these models, so they are never `verified`; their digest says only which files they were.
Source: Triton's model repository documentation.
"""

import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from seatrial.bundle.manifest import sha256
from seatrial.bundle.store import file_sha256
from seatrial.errors import InvalidSource, SeatrialError
from seatrial.settings import Serving
from seatrial_serving.generation import Identity
from seatrial_serving.open_inference.open_inference_pb2 import ModelConfig
from seatrial_serving.triton import model_config
from seatrial_serving.triton.model_config import ENSEMBLE, PLATFORM

CONFIG, MODEL, WARM_UP, INITIAL_STATE = "config.pbtxt", "model.onnx", "warmup", "initial_state"
MOST_CONFIG_BYTES, MOST_LABEL_BYTES = 2**20, 2**24
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_VERSION = re.compile(r"0|[1-9][0-9]{0,17}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TritonRepository:
    path: Path

    @staticmethod
    def is_one(path: Path) -> bool:
        return path.is_dir() and bool(TritonRepository(path).models())

    def models(self) -> list[str]:
        """The names of the directories that look like a model: with a configuration, or a version."""
        return sorted(name for name in _folders(self.path, _NAME) if _looks_like_a_model(self.path / name))

    def in_order(self) -> list[str]:
        """The same, each after those that it is made of."""
        names = self.models()
        ordered: dict[str, None] = {}

        def visit(name: str, above: tuple[str, ...] = ()) -> None:
            if name in names and name not in ordered and name not in above:
                for part in self.model(name).parts():
                    visit(part, (*above, name))
                ordered[name] = None

        for name in names:
            visit(name)
        return list(ordered)

    def model(self, name: str) -> "TritonModel":
        return TritonModel(path=self.path / name)

    def versions(self, model: str) -> "list[TritonModel]":
        """What of `model` its configuration wants to be served. Raises `InvalidSource`, `EngineUnavailable`."""
        if model not in self.models():
            raise InvalidSource(f"there is no model '{model}' in {self.path} any more")
        whole = self.model(model)
        fields = model_config.left_out(whole.config())
        if fields:
            log.warning("the config.pbtxt of '%s' sets what is not done here: %s", model, ", ".join(fields))
        return [TritonModel(path=whole.path, version=version) for version in whole.wanted()]


def _folders(path: Path, pattern: re.Pattern[str]) -> list[str]:
    """The names of the directories in `path`; one that cannot be read has none."""
    try:
        return [each.name for each in path.iterdir() if pattern.fullmatch(each.name) and each.is_dir()]
    except OSError:
        return []


def _looks_like_a_model(path: Path) -> bool:
    return (path / CONFIG).is_file() or any(_folders(path, _VERSION))


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """One version of the model in the directory `path`; all of it where `version` is empty."""

    path: Path
    version: str = ""

    @property
    def place(self) -> Path:
        return self.path / self.version

    @property
    def whole(self) -> "TritonModel":
        return TritonModel(path=self.path)

    @staticmethod
    def at(place: Path) -> "TritonModel":
        """What `place` is of. Raises `InvalidSource` where that is no version's directory."""
        if not _VERSION.fullmatch(place.name):
            raise InvalidSource(f"{place} is neither a bundle nor a version of a model in a Triton repository")
        return TritonModel(path=place.parent, version=place.name)

    def config(self) -> ModelConfig:
        """What its configuration says; of a model without one, nothing. Raises as `model_config.parse` does."""
        path = self.path / CONFIG
        text = self._read(path, MOST_CONFIG_BYTES) if path.exists() or path.is_symlink() else b""
        return model_config.parse(text, model=self.path.name)

    def parts(self) -> list[str]:
        """The models that an ensemble names; none for any other, or where that cannot be read."""
        with suppress(SeatrialError):
            return [step.model_name for step in self.config().ensemble_scheduling.step]
        return []

    def wanted(self) -> list[str]:
        """The versions that the policy names, the lowest first. Raises `InvalidSource` where there is none of them."""
        there = sorted(_folders(self.path, _VERSION), key=int)
        policy = self.config().version_policy
        match policy.WhichOneof("policy_choice"):
            case "all":
                wanted = there
            case "specific":
                wanted = [version for version in there if int(version) in policy.specific.versions]
            case _:
                wanted = there[-max(1, policy.latest.num_versions) :]
        if not wanted:
            raise InvalidSource(f"{self.path} has the versions {there}, and none that its version_policy wants")
        return wanted

    def identity(self) -> Identity:
        """Reads every byte; an ensemble has no digest, for its models may change. Raises `InvalidSource`, `EngineUnavailable`."""
        config = self.config()
        is_ensemble = config.platform == ENSEMBLE
        return Identity(
            name=self.path.name,
            version=self.version,
            variant="ensemble" if is_ensemble else "unverified",
            digest="" if is_ensemble else self.digest(),
            alias="",
            platform=ENSEMBLE if is_ensemble else PLATFORM,
            labels=self._labels(),
            verified=False,
            stateful=config.HasField("sequence_batching"),
        )

    def settings(self, server: Serving) -> Serving:
        """How it is served: by its configuration, and by the server's settings where that says nothing."""
        config = self.config()
        return server.model_copy(
            update={
                "batching": model_config.batching(config, server.batching),
                "engines": model_config.engines(config, server.engines),
                "sequences": model_config.sequences(config, server.sequences),
            }
        )

    def model_file(self) -> Path:
        """The ONNX file itself: links resolved, in a directory of its own where Triton would look there too."""
        name = self.config().default_model_filename or MODEL
        path = self._inside(self.place / name)
        return self._file(path / MODEL if path.is_dir() else path)

    def sample_file(self, name: str) -> Path:
        """The file of a warm-up's input."""
        return self._file(self.path / WARM_UP / name)

    def state_file(self, name: str) -> Path:
        """The file of a state that does not begin with zeros."""
        return self._file(self.path / INITIAL_STATE / name)

    def digest(self) -> str:
        """Of every file that may have a part in its answers, names and contents. Raises `InvalidSource`."""
        files = dict.fromkeys([self.model_file(), *map(self._file, self._files())])
        lines = [f"{path.relative_to(self._root())}\0{file_sha256(path)}\n" for path in files]
        return sha256("".join(lines).encode())

    def _files(self) -> list[Path]:
        outputs = self.config().output
        beside = [self.path / CONFIG, *(self.path / each.label_filename for each in outputs if each.label_filename)]
        below = [
            path
            for folder in (self.place, self.path / WARM_UP, self.path / INITIAL_STATE)
            for path in sorted(folder.rglob("*"))
        ]
        return [path for path in (*beside, *below) if path.is_file()]

    def _labels(self) -> tuple[str, ...]:
        """Those of the outputs that have some, one a line. Raises `InvalidSource` where two outputs have different ones."""
        names = dict.fromkeys(each.label_filename for each in self.config().output if each.label_filename)
        texts = {self._read(self.path / name, MOST_LABEL_BYTES) for name in names}
        if len(texts) > 1:
            raise InvalidSource(
                f"the outputs of '{self.path.name}' have different labels, {list(names)}; here they have the same"
            )
        try:
            return tuple(line.rstrip("\r") for text in texts for line in text.decode().removesuffix("\n").split("\n"))
        except UnicodeDecodeError as error:
            raise InvalidSource(f"the labels of '{self.path.name}' are not UTF-8: {error}") from error

    def _read(self, path: Path, most_bytes: int) -> bytes:
        try:
            with self._file(path).open("rb") as file:
                data = file.read(most_bytes + 1)
        except OSError as error:
            raise InvalidSource(f"{path} cannot be read: {error.strerror}") from error
        if len(data) > most_bytes:
            raise InvalidSource(f"{path} has more than {most_bytes} bytes")
        return data

    def _file(self, path: Path) -> Path:
        """`path` itself, a plain file in the repository. Raises `InvalidSource`."""
        found = self._inside(path)
        if not found.is_file():
            raise InvalidSource(f"{path} is missing or not a plain file")
        return found

    def _inside(self, path: Path) -> Path:
        """`path` with its links resolved. Raises `InvalidSource` where that is outside of the repository."""
        try:
            found = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise InvalidSource(f"{path} leads nowhere: {error}") from error
        if not found.is_relative_to(self._root()):
            raise InvalidSource(f"{path} leads out of the repository, to {found}")
        return found

    def _root(self) -> Path:
        return self.path.parent.resolve()
