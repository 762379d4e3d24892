"""Bundles on disk: written atomically under their digest, opened, verified.

A bundle directory is complete or absent. Opening reads the manifest; `verify` reads every byte.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seatrial.bundle.evidence import Evidence
from seatrial.bundle.golden import Golden
from seatrial.bundle.manifest import (
    EVIDENCE,
    MAIN,
    MANIFEST,
    Body,
    Bound,
    Driver,
    EngineSpec,
    FileEntry,
    GoldenRequest,
    Hardware,
    Manifest,
    ModelName,
    Normalize,
    Pool,
    Tokenize,
    Tolerance,
    VariantName,
    sha256,
)
from seatrial.errors import BundleCorrupt, MalformedRequest
from seatrial.files import directory_aside, put_in_place, write_whole
from seatrial.protocol import Tensor, decode_answer, decode_request, encode_answer, encode_request
from seatrial.tensors import Signature

WEIGHTS = ".bin"
"""Of a model's second file, beside its first and of the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle on disk whose manifest was read. `digest` is its content digest, as the directory claims it."""

    path: Path
    manifest: Manifest
    digest: str

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def model_bytes(self) -> int:
        """Of the main graph: its file, with the weights that some formats keep in a second one, or all of its folder."""
        graph, *_ = self.manifest.graphs[MAIN].split("/")
        own = (graph, Path(graph).with_suffix(WEIGHTS).name)
        return sum(entry.size for name, entry in self.manifest.files.items() if name.split("/")[0] in own)

    def verify(self) -> None:
        """Read every file and raise `BundleCorrupt` at the first whose size or digest is not the manifest's."""
        for name, entry in self.manifest.files.items():
            path = self.file(name)
            if path.is_symlink() or not path.is_file():
                raise BundleCorrupt(f"{path} is missing from the bundle or not a plain file")
            if (size := path.stat().st_size) != entry.size:
                raise BundleCorrupt(f"{path} has {size} bytes, the manifest says {entry.size}: truncated or replaced")
            if (found := file_sha256(path)) != entry.sha256:
                raise BundleCorrupt(f"{path} has digest {found}, the manifest says {entry.sha256}: it was changed")

    def golden(self) -> tuple[Golden, ...]:
        """The golden requests, read from disk. Raises `BundleCorrupt` where one is not what it should be."""
        return tuple(self._read_golden(entry) for entry in self.manifest.golden)

    def _read_golden(self, entry: GoldenRequest) -> Golden:
        try:
            return Golden(
                request=decode_request(
                    self.file(entry.request.file).read_bytes(), json_length=entry.request.json_length
                ),
                source=decode_answer(self.file(entry.source.file).read_bytes(), json_length=entry.source.json_length),
                rerun=decode_answer(self.file(entry.rerun.file).read_bytes(), json_length=entry.rerun.json_length),
                graph=entry.graph,
            )
        except (OSError, MalformedRequest) as error:
            raise BundleCorrupt(
                f"golden request {entry.request.file} of {self.path} cannot be read: {error}"
            ) from error

    def evidence(self) -> Evidence | None:
        """What was measured about it; None where no evidence lies beside it."""
        path = self.path / EVIDENCE
        if not path.exists():
            return None
        evidence = Evidence.decode(path.read_bytes(), where=str(path))
        if evidence.bundle != self.digest:
            raise BundleCorrupt(f"{path} is evidence of {evidence.bundle}, but lies in the bundle {self.digest}")
        return evidence

    def replace_evidence(self, evidence: Evidence) -> None:
        write_whole(self.path / EVIDENCE, evidence.encode())


def open_bundle(path: Path, *, expected: str | None = None) -> Bundle:
    """Read the manifest in `path`. Raises `BundleCorrupt` if there is none or its digest is not `expected`."""
    manifest_path = path / MANIFEST
    try:
        text = manifest_path.read_bytes()
    except OSError as error:
        raise BundleCorrupt(f"{path} is not a bundle: {manifest_path} cannot be read ({error.strerror})") from error
    digest = sha256(text)
    if expected is not None and digest != expected:
        raise BundleCorrupt(f"{manifest_path} has digest {digest}, expected {expected}: it was changed")
    return Bundle(path=path, manifest=Manifest.decode(text, where=str(manifest_path)), digest=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a bundle will hold. `files` are copied under their names; golden requests are encoded beside them."""

    model: ModelName
    variant: VariantName
    signature: Signature
    engine: EngineSpec
    graphs: Mapping[str, str]
    files: Mapping[str, Path]
    golden: tuple[Golden, ...]
    source_bounds: Mapping[str, Bound]
    rerun_bounds: Mapping[str, Bound]
    labels: tuple[str, ...] = ()
    preprocessing: tuple[Tokenize, ...] = ()
    postprocessing: tuple[Pool | Normalize, ...] = ()
    hardware: Hardware | None = None


def write_bundle(draft: Draft, store: Path) -> Bundle:
    """Write the bundle to `store/<digest>`, whole or not at all; the same draft twice is one directory. One that is there
    already and was damaged is replaced.

    Raises `DiskFull` with nothing left behind.
    """
    with directory_aside(store) as aside:
        manifest = _fill(aside, draft)
        target = store / directory_name(manifest.digest)
        put_in_place(aside, target, whole=is_whole)
    return open_bundle(target, expected=manifest.digest)


def is_whole(place: Path) -> bool:
    """Whether every byte of the bundle in `place`, a directory of the store, is what its name says."""
    try:
        open_bundle(place, expected=place.name.replace("-", ":", 1)).verify()
    except (BundleCorrupt, OSError):
        return False
    return True


def directory_name(digest: str) -> str:
    """`sha256:…` as a directory name, which has no colon."""
    return digest.replace(":", "-")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _fill(directory: Path, draft: Draft) -> Manifest:
    for name, origin in draft.files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, directory / name)
    (directory / "golden").mkdir(exist_ok=True)
    golden = tuple(_write_golden(directory, number, each, draft) for number, each in enumerate(draft.golden))
    manifest = Manifest(
        model=draft.model,
        variant=draft.variant,
        signature=draft.signature,
        engine=draft.engine,
        graphs=dict(draft.graphs),
        tolerance=Tolerance(source=dict(draft.source_bounds), rerun=dict(draft.rerun_bounds)),
        golden=golden,
        files=_entries(directory),
        driver=Driver.STATEFUL if draft.signature.states else Driver.ONCE,
        preprocessing=draft.preprocessing,
        postprocessing=draft.postprocessing,
        labels=draft.labels,
        hardware=draft.hardware,
    )
    (directory / MANIFEST).write_bytes(manifest.encode())
    return manifest


def _write_golden(directory: Path, number: int, golden: Golden, draft: Draft) -> GoldenRequest:
    def keep(kind: str, body: bytes, json_length: int) -> Body:
        name = f"golden/{number:03}.{kind}"
        (directory / name).write_bytes(body)
        return Body(file=name, json_length=json_length)

    def keep_answer(kind: str, outputs: tuple[Tensor, ...]) -> Body:
        binary = {tensor.name: True for tensor in outputs}
        body, json_length = encode_answer(
            outputs, model=draft.model.name, version=draft.model.version, request_id="", binary=binary
        )
        return keep(kind, body, json_length or len(body))

    return GoldenRequest(
        request=keep("request", *encode_request(golden.request)),
        source=keep_answer("source", golden.source),
        rerun=keep_answer("rerun", golden.rerun),
        graph=golden.graph,
    )


def _entries(directory: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        path.relative_to(directory).as_posix(): FileEntry(sha256=file_sha256(path), size=path.stat().st_size)
        for path in files
    }
