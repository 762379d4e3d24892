import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest

from seatrial.bundle import (
    Bound,
    Bundle,
    Draft,
    EngineSpec,
    Golden,
    Manifest,
    ModelName,
    VariantName,
    describe_violation,
    open_bundle,
    write_bundle,
)
from seatrial.bundle.evidence import Evidence, Provenance
from seatrial.errors import BundleCorrupt, DiskFull
from seatrial.files import _exchange, sweep
from seatrial.machine import this_machine
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import DataType, DynamicAxis, Signature, TensorSpec
from tests.disks import small_disk

CORE = Path(__file__).parent.parent.parent / "core"


def tensor(name: str, *values: float) -> Tensor:
    return Tensor(name, DataType.FP32, np.array([values], np.float32))


@pytest.fixture
def draft(tmp_path: Path) -> Draft:
    model = tmp_path / "somewhere.onnx"
    model.write_bytes(b"weights" * 100)
    return Draft(
        model=ModelName(name="tiny", version="1"),
        variant=VariantName(name="onnx-cpu-fp32", target="onnx-cpu", precision="fp32"),
        signature=Signature(
            inputs=(TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 2)),),
            outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 3)),),
            dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "y": 0}, max=64),),
        ),
        engine=EngineSpec(name="onnxruntime"),
        graphs={"main": "model.onnx"},
        files={"model.onnx": model},
        golden=(
            Golden(
                request=InferRequest((tensor("x", 1, 2),)),
                source=(tensor("y", 1, 2, 3),),
                rerun=(tensor("y", 1, 2, 3.0001),),
            ),
        ),
        source_bounds={"y": Bound(absolute=1e-3)},
        rerun_bounds={"y": Bound(absolute=1e-5)},
        labels=("a", "b", "c"),
    )


@pytest.fixture
def bundle(draft: Draft, tmp_path: Path) -> Bundle:
    return write_bundle(draft, tmp_path / "store")


def test_a_bundle_is_read_as_it_was_written(bundle: Bundle) -> None:
    opened = open_bundle(bundle.path, expected=bundle.digest)
    opened.verify()
    assert opened == bundle
    [golden] = opened.golden()
    assert golden.request.inputs[0].array.tolist() == [[1, 2]]
    assert describe_violation(golden.rerun, golden.source, dict(opened.manifest.tolerance.source)) is None
    assert opened.manifest.labels == ("a", "b", "c")


def test_the_same_content_has_the_same_digest_wherever_and_whenever_it_is_built(draft: Draft, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.onnx"
    elsewhere.write_bytes(b"weights" * 100)
    os.utime(elsewhere, (1, 1))
    moved = replace(draft, files={"model.onnx": elsewhere})
    assert write_bundle(moved, tmp_path / "one").digest == write_bundle(draft, tmp_path / "two").digest


def test_writing_a_bundle_twice_leaves_one(draft: Draft, tmp_path: Path) -> None:
    first, second = write_bundle(draft, tmp_path / "store"), write_bundle(draft, tmp_path / "store")
    assert first == second
    assert [path.name for path in (tmp_path / "store").iterdir()] == [first.path.name]


@pytest.mark.parametrize("damage", [b"", b"weights" * 99 + b"WEIGHTS", None], ids=["cut off", "changed", "missing"])
def test_a_damaged_bundle_is_replaced_when_it_is_written_again(
    draft: Draft, tmp_path: Path, damage: bytes | None
) -> None:
    bundle = write_bundle(draft, tmp_path / "store")
    model = bundle.path / "model.onnx"
    model.unlink()
    if damage is not None:
        model.write_bytes(damage)
    with (bundle.path / "golden" / "000.request").open("rb") as mapped:  # as an engine that runs has it
        write_bundle(draft, tmp_path / "store").verify()
        assert mapped.read(), "who has the old one open keeps it"
    assert [path.name for path in (tmp_path / "store").iterdir()] == [bundle.path.name]


def test_directories_change_places_also_where_the_system_cannot_do_it_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for in_one_step in (True, False):
        place = tmp_path / str(in_one_step)
        one, other = place / "one", place / "other"
        for each in (one, other):
            each.mkdir(parents=True)
            (each / each.name).touch()
        if not in_one_step:
            monkeypatch.setattr("seatrial.files._EXCHANGE", 1 << 20)  # which no kernel knows
        _exchange(one, other)
        assert [path.relative_to(place).as_posix() for path in sorted(place.rglob("*"))] == [
            *("one", "one/other", "other", "other/one"),
        ]


def test_any_changed_fact_changes_the_digest(draft: Draft, tmp_path: Path) -> None:
    variants = [
        draft,
        replace(draft, labels=("a", "b", "d")),
        replace(draft, source_bounds={"y": Bound(absolute=1e-2)}),
        replace(draft, model=ModelName(name="tiny", version="2")),
    ]
    assert len({write_bundle(each, tmp_path / "store").digest for each in variants}) == len(variants)


@pytest.mark.parametrize("name", ["model.onnx", "golden/000.request", "golden/000.source", "golden/000.rerun"])
def test_a_truncated_changed_missing_or_linked_file_is_noticed(bundle: Bundle, name: str) -> None:
    path = bundle.file(name)
    content = path.read_bytes()

    path.write_bytes(content[:-1])
    with pytest.raises(BundleCorrupt, match=f"has {len(content) - 1} bytes, the manifest says {len(content)}"):
        bundle.verify()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(BundleCorrupt, match="it was changed"):
        bundle.verify()
    path.unlink()
    with pytest.raises(BundleCorrupt, match="missing"):
        bundle.verify()
    path.symlink_to("/etc/hostname")
    with pytest.raises(BundleCorrupt, match="not a plain file"):
        bundle.verify()


def test_a_changed_manifest_is_not_the_bundle_that_was_asked_for(bundle: Bundle) -> None:
    manifest = bundle.path / "bundle.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"FP32"', b'"FP64"'))
    with pytest.raises(BundleCorrupt, match="it was changed"):
        open_bundle(bundle.path, expected=bundle.digest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "schema version 2, this Seatrial reads 1"),
        ({"color": "red"}, "unknown field `color`"),
        ({"files": {"../../etc/passwd": {"sha256": "", "size": 0}}}, "not a plain name inside the bundle"),
        ({"files": {"/etc/passwd": {"sha256": "", "size": 0}}}, "not a plain name inside the bundle"),
        ({"graphs": {"main": "other.onnx"}}, "refers to 'other.onnx', which is not among its files"),
        ({"signature": {"inputs": 3}}, "is not a bundle manifest"),
    ],
)
def test_a_manifest_that_we_would_not_write_is_refused(bundle: Bundle, change: dict[str, object], words: str) -> None:
    document = json.loads((bundle.path / "bundle.json").read_text()) | change
    (bundle.path / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(BundleCorrupt) as caught:
        open_bundle(bundle.path)
    assert words in str(caught.value)


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleCorrupt, match="is not a bundle"):
        open_bundle(tmp_path)


def test_evidence_is_replaced_without_touching_the_content(bundle: Bundle) -> None:
    evidence = Evidence(
        bundle=bundle.digest,
        written_at="2026-01-01T00:00:00Z",
        machine=this_machine(),
        provenance=Provenance(source="models:/tiny/1"),
    )
    assert bundle.evidence() is None
    bundle.replace_evidence(evidence)
    bundle.replace_evidence(msgspec.structs.replace(evidence, size_bytes=700))
    reread = open_bundle(bundle.path, expected=bundle.digest).evidence()
    assert reread is not None
    assert reread.size_bytes == 700

    bundle.replace_evidence(msgspec.structs.replace(evidence, bundle="sha256:" + "0" * 64))
    with pytest.raises(BundleCorrupt, match="is evidence of"):
        bundle.evidence()


def test_a_full_disk_leaves_nothing_behind(draft: Draft, tmp_path: Path) -> None:
    big = tmp_path / "big.onnx"
    big.write_bytes(b"\0" * 4 * 2**20)
    with small_disk(tmp_path / "small", kib=1024) as disk:
        with pytest.raises(DiskFull, match="no space left"):
            write_bundle(replace(draft, files={"model.onnx": big}), disk / "store")
        assert list((disk / "store").iterdir()) == []


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from seatrial.files import directory_aside
with directory_aside(Path(sys.argv[1])) as aside:
    (aside / "bundle.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_leaves_is_no_bundle_and_can_be_swept(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".new-")
    assert sweep(tmp_path, older_than_s=60, now=left.stat().st_mtime + 30) == []
    assert sweep(tmp_path, older_than_s=60, now=left.stat().st_mtime + 61) == [left]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("got", "bound", "words"),
    [
        ((1.0, 2.0, 3.0), Bound(absolute=0), None),
        ((1.0, 2.0, 3.1), Bound(absolute=0.2), None),
        ((1.0, 2.0, 3.1), Bound(absolute=0.05), "is 3.1 at [0, 2], recorded was 3: 0.1 apart, 0.05 allowed"),
        ((1.0, 2.0, 3.1), Bound(absolute=0.0, relative=0.05), None),
        ((1.0, 3.2, 3.1), Bound(absolute=2, top1=True), "another largest element in 1 of 1 rows"),
        ((np.nan, 2.0, 3.0), Bound(absolute=1e9), "is nan at [0, 0]"),
        ((np.inf, 2.0, 3.0), Bound(absolute=1e9), "is inf at [0, 0]"),
    ],
)
def test_bounds_say_which_failed_and_by_how_much(got: tuple[float, ...], bound: Bound, words: str | None) -> None:
    violation = describe_violation([tensor("y", *got)], [tensor("y", 1, 2, 3)], {"y": bound})
    assert violation is None if words is None else words in str(violation)


def test_a_missing_or_misshapen_output_is_a_violation() -> None:
    recorded = [tensor("y", 1, 2)]
    assert describe_violation([], recorded, {}) == "output 'y' is missing"
    assert "recorded was FP32[1, 2]" in str(describe_violation([tensor("y", 1, 2, 3)], recorded, {}))


# The example that the documentation shows


def test_the_example_is_what_we_would_write_and_fits_its_published_schema() -> None:
    text = (CORE / "bundle-example" / "bundle.json").read_bytes()
    manifest = Manifest.decode(text, where="the example")
    assert manifest.encode() == text
    schema = json.loads((CORE / "bundle-example" / "bundle.schema.json").read_text())
    jsonschema.validate(json.loads(text), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(text) | {"driver": "twice"}, schema)


def test_errno_of_a_quota_counts_as_a_full_disk(tmp_path: Path) -> None:
    from seatrial.files import telling_of_full_disk

    with pytest.raises(DiskFull), telling_of_full_disk(tmp_path):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    with pytest.raises(PermissionError), telling_of_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")
