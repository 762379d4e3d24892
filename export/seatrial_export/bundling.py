"""From the chosen variant to its bundle: golden requests recorded, replayed on a fresh engine, evidence beside it."""

from collections.abc import Iterable
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
from seatrial_export.source import SEED, Source
from seatrial_export.stand import Stand
from seatrial_export.tools import tools
from seatrial_export.trial import Questions, Verified


def bundle_up(
    verified: Verified, questions: Questions, *, aside: Path, store: Path, where: Stand | Elsewhere
) -> Bundle:
    """Write the bundle into `store`, once a copy of it `aside` has been opened `where` it was verified, and has replayed its
    golden requests.

    Raises `ConversionFailed` where it does not repeat itself, or its process is lost: such a bundle gets nowhere.
    """
    recording = record(
        questions.exam, verified.proof, source=questions.answer, variant=partial(where.answers, verified.bundle)
    )
    draft = replace(
        verified.draft, golden=recording.golden, source_bounds=recording.source, rerun_bounds=recording.rerun
    )
    where.replay(write_bundle(draft, aside))
    return write_bundle(draft, store)


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
