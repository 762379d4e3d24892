"""From the chosen variant to its bundle: golden requests recorded, replayed on a fresh engine, evidence beside it."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from seatrial.bundle import Bundle, Evidence, Sibling, write_bundle
from seatrial.bundle.evidence import Provenance
from seatrial.machine import this_machine
from seatrial_export.choose import Budget, Variant
from seatrial_export.elsewhere import Elsewhere
from seatrial_export.golden import record
from seatrial_export.samples import Inputs, Outputs
from seatrial_export.source import SEED, Source
from seatrial_export.tools import tools
from seatrial_export.trial import Questions, Verified
from seatrial_serving.engines import open_engine, proof


def bundle_up(
    verified: Verified,
    questions: Questions,
    *,
    aside: Path,
    store: Path,
    threads: int,
    elsewhere: Elsewhere | None = None,
) -> Bundle:
    """Write the bundle into `store`, once a copy of it `aside` has been opened, here or `elsewhere`, and has replayed its golden
    requests.

    Raises `GoldenMismatch` where it does not repeat itself: such a bundle gets nowhere.
    """
    answers = elsewhere.answers if elsewhere else partial(_answers, threads=threads)
    recording = record(
        questions.exam, verified.proof, source=questions.answer, variant=partial(answers, verified.bundle)
    )
    draft = replace(
        verified.draft, golden=recording.golden, source_bounds=recording.source, rerun_bounds=recording.rerun
    )
    tried = write_bundle(draft, aside)
    if elsewhere:
        elsewhere.replay(tried)
    else:
        with closing(open_engine(tried, threads=threads)) as engine:
            proof.replay(engine, tried)
    return write_bundle(draft, store)


def _answers(bundle: Bundle, calls: Sequence[Inputs], *, threads: int) -> list[Outputs]:
    with closing(open_engine(bundle, threads=threads)) as engine:
        return [engine.predict(inputs) for inputs in calls]


def add_evidence(
    bundle: Bundle,
    variant: Variant,
    source: Source,
    *,
    budget: Budget,
    run_id: str,
    of_version: Iterable[Bundle],
    elsewhere: Elsewhere | None = None,
) -> None:
    """`of_version` are the bundles of the same version, for whatever target: the others become its siblings."""
    bundle.replace_evidence(
        Evidence(
            bundle=bundle.digest,
            written_at=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=elsewhere.machine if elsewhere else this_machine(),
            provenance=Provenance(
                source=str(source.version),
                export_run=run_id,
                training_run=source.version.run_id,
                data_digest=source.dataset.digest if source.dataset else "",
                calibration_digest=source.calibration_digest,
                seed=SEED,
                tools=dict(elsewhere.tools) if elsewhere else tools(),
            ),
            quality=variant.quality,
            agreement=variant.proof.agreement,
            timings=variant.timings,
            size_bytes=variant.size_bytes,
            memory_bytes=variant.memory_bytes,
            load_s=variant.load_s,
            budget=budget.as_dict(),
            siblings=tuple(_sibling(each) for each in of_version if each.digest != bundle.digest),
        )
    )


def _sibling(bundle: Bundle) -> Sibling:
    manifest = bundle.manifest
    return Sibling(
        target=manifest.variant.target,
        variant=manifest.variant.name,
        digest=bundle.digest,
        engine=manifest.engine,
        hardware=manifest.hardware,
    )
