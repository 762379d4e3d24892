"""Our export beside Microsoft Olive's search: the same model, rows, threads, time, and accuracy to keep.

Olive has an environment of its own and is given the FP32 graph that ours starts from, all that its quantization leaves open to
search, and as many seconds as ours may take. What both chose is then opened by our engine, scored on the same held-out rows,
and timed in turns.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench
from benchmarks.exports import FP32, Case, export
from benchmarks.peer import SERVICES, environment
from benchmarks.rounds import Lost
from benchmarks.stands import played
from benchmarks.tables import table
from seatrial.bundle import MAIN, Bundle, Draft, open_bundle, write_bundle
from seatrial.bundle.evidence import Quality
from seatrial.bundle.store import directory_name
from seatrial.registry import ModelRef
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import load_settings
from seatrial_export import candidate as candidates
from seatrial_export.build import Built
from seatrial_export.candidate import Candidate, Compression, Precision, named
from seatrial_export.examination import Examined
from seatrial_export.export import Work
from seatrial_export.measure import ratio
from seatrial_export.quality import by_labels
from seatrial_export.request import Request
from seatrial_export.samples import repeat, write_arrays
from seatrial_export.timetable import Timetable
from seatrial_export.trial import examine
from seatrial_serving.engines import open_engine

REQUIRES = (
    *("olive-ai==0.11.0", "torch==2.13.0", "onnx==1.23.2", "onnxscript==0.7.2", "optuna==5.0.0", "pydantic==2.14.3"),
    *("transformers==5.23.0", "torchmetrics==1.9.0", "pandas", "requests", "psutil"),
)
"""The newest whose search goes on after its first trial: 0.12.1 and 0.13.0 end with `"FootprintNode" object has no field
"model_config"` where a pass's result is taken from the cache."""
MINUTES = 6
BATCH, TIMED_FOR_S = 32, 60.0
OURS, THEIRS = "Seatrial", "Olive"
CASES = (
    (Case(model="cifar10-resnet/1", accuracy_drop=0.003, times=3), False),
    (Case(model="clinc150-minilm/1", accuracy_drop=0.005, times=2.2), True),
)
"""With each, whether Olive is told that it is a Transformer, so that it fuses attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """`seconds` is all of the time that it took to find `bundle`."""

    seconds: float
    bundle: Bundle
    quality: Quality
    remark: str = ""


def measure(bench: Bench) -> str:
    task = bench.progress.add_task("olive", total=len(CASES))
    must, tables = [], []
    for case, transformer in CASES:
        with tempfile.TemporaryDirectory(dir=bench.place) as place:
            promised, found = _compare(case, Path(place), bench, transformer=transformer)
        must += promised
        tables.append(f"{case.model}, at most {100 * case.accuracy_drop:g} points lost:\n\n{found}")
        bench.progress.advance(task)
    return "\n\n".join([table(["must hold", "found", ""], must), *tables])


def _compare(case: Case, place: Path, bench: Bench, *, transformer: bool) -> tuple[list[list[str]], str]:
    settings, ref = load_settings(), ModelRef.parse(case.model)
    version = EmbeddedRegistry(settings).resolve(ref)
    request = Request(ref=ref, candidates=named([FP32]))
    work = Work(request=request, version=version, settings=settings, place=place / "work", timetable=Timetable())
    with work.stand() as stand:
        examined = work.examine(stand)
        [base] = examined.verified
        sides = {
            OURS: _ours(case, examined),
            THEIRS: _theirs(case, examined, place / "olive", bench, transformer=transformer),
        }
        bundles = {FP32: base.bundle} | {name: side.bundle for name, side in sides.items()}
        calls = place / "calls.npz"
        write_arrays(calls, repeat(examined.source.rows, BATCH))
        taken = played(bundles, stand, calls, for_s=TIMED_FOR_S)
    ours, theirs = sides[OURS], sides[THEIRS]
    faster, spent = ratio(taken[THEIRS], taken[OURS]), ours.seconds / theirs.seconds
    must = [
        [f"{case.model}: at least as fast as Olive's", f"{faster} times", _verdict(faster.high >= 1)],
        [
            f"{case.model}: within the budget",
            f"surely under {100 * ours.quality.drop_upper:.2f} points lost",
            _verdict(ours.quality.drop_upper <= case.accuracy_drop),
        ],
        [f"{case.model}: no more time than Olive's search", f"{spent:.2f} of it", _verdict(spent <= 1)],
    ]
    rows = [
        [
            name,
            f"{side.seconds:.0f}",
            str(ratio(taken[FP32], taken[name])),
            f"{side.quality.value:.2%} ({100 * (side.quality.source_value - side.quality.value):.2f} points lost, "
            f"surely under {100 * side.quality.drop_upper:.2f})",
            f"{side.bundle.file(side.bundle.manifest.graphs[MAIN]).stat().st_size / 1e6:.2f}",
            side.remark,
        ]
        for name, side in sides.items()
    ]
    columns = ["", "seconds", "times FP32's rows a second", "accuracy", "MB", "what"]
    return must, table(columns, rows)


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _ours(case: Case, examined: Examined) -> Side:
    """An export that remembers nothing of earlier ones."""
    began = time.monotonic()
    report = export(replace(case, options=("--minutes", str(MINUTES)), variables={"SEATRIAL_EXPORT__KEEP_MB": "0"}))
    seconds = time.monotonic() - began
    chosen = next((row for row in report["rows"] if row["verdict"] == "chosen"), None)
    if chosen is None:
        raise Lost(f"nothing of {case.model} was within the budget")
    bundle = open_bundle(load_settings().bundles / directory_name(report["bundles"][chosen["target"]]))
    return Side(seconds=seconds, bundle=bundle, quality=_quality(bundle, examined), remark=chosen["name"])


def _theirs(case: Case, examined: Examined, place: Path, bench: Bench, *, transformer: bool) -> Side:
    source, [base] = examined.source, examined.verified
    assert source.held_out is not None, f"{case.model} came without labels: this is a bug"
    place.mkdir()
    (place / "model.onnx").symlink_to(base.bundle.file(base.bundle.manifest.graphs[MAIN]))
    write_arrays(place / "calibration.npz", source.calibration)
    write_arrays(place / "held-out.npz", source.held_out.inputs)
    np.save(place / "held-out.labels.npy", source.held_out.labels)
    python = environment("olive", REQUIRES, bench.place) / "python"
    found = place / "best.onnx"
    command = [
        *(str(python), str(SERVICES / "olive_search.py"), str(place), str(found)),
        *("--drop", str(case.accuracy_drop), "--seconds", str(60 * MINUTES), "--batch", str(BATCH)),
        *("--threads", "1", "--classes", str(len(source.labels))),
        *(["--transformer"] if transformer else []),
    ]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"CI": "true"})
    if done.returncode:
        raise Lost(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    seconds = time.monotonic() - began
    print(done.stdout.splitlines()[-1], file=sys.stderr)
    return _opened(found, examined, place / "bundles", seconds=seconds)


def _opened(found: Path, examined: Examined, store: Path, *, seconds: float) -> Side:
    """What Olive made, as a bundle, with what our verification says of it."""
    [base] = examined.verified
    candidate = Candidate(target=base.candidate.target, precision=Precision.INT8, compression=(Compression.STATIC,))
    judged = examine(
        Built(candidate=candidate, model=found), examined.source, examined.questions, store=store, threads=1
    )
    remark = f"our verification: {judged.reason}" if isinstance(judged, candidates.Lost) else "verified"
    draft = Draft(
        model=base.draft.model,
        variant=candidate.variant_name(()),
        signature=base.draft.signature,
        engine=candidate.engine,
        graphs={MAIN: found.name},
        files={found.name: found},
        golden=(),
        source_bounds={},
        rerun_bounds={},
    )
    bundle = write_bundle(draft, store)
    return Side(seconds=seconds, bundle=bundle, quality=_quality(bundle, examined), remark=remark)


def _quality(bundle: Bundle, examined: Examined) -> Quality:
    held_out = examined.questions.held_out
    assert held_out is not None, "a model without labels: this is a bug"
    with closing(open_engine(bundle, threads=1)) as engine:
        return by_labels(engine.predict, held_out)
