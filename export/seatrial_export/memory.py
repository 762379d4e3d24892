"""The child that says how much memory an engine takes: `python -P -m seatrial_export.memory job.json`."""

from pathlib import Path

import msgspec

from seatrial_export import child
from seatrial_export.child import Limits


class Job(msgspec.Struct, frozen=True, kw_only=True):
    bundle: str
    batch: int
    threads: int


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory above that of a process which has only imported the engine's library."""

    bytes: int


def measure_memory(bundle: Path, *, batch: int, folder: Path, limits: Limits) -> int:
    """Open `bundle` in a process of its own and run one batch of zeros. Raises `ConversionFailed` where that fails."""
    job = Job(bundle=str(bundle), batch=batch, threads=limits.threads)
    return child.run("seatrial_export.memory", job, folder=folder, answer=Taken, limits=limits).bytes


def _take(job: Job) -> Taken:
    import importlib
    import os

    from seatrial.bundle import open_bundle
    from seatrial.engines import ENGINES
    from seatrial_serving.engines import open_engine, proof

    bundle = open_bundle(Path(job.bundle))
    importlib.import_module(ENGINES[bundle.manifest.engine.name].package)  # what it takes by itself is not the bundle's
    before = child.resident_bytes(os.getpid())
    engine = open_engine(bundle, threads=job.threads)
    proof.warm_up(engine, batch_sizes=(1, job.batch))
    return Taken(bytes=child.resident_bytes(os.getpid()) - before)


if __name__ == "__main__":
    child.work(Job, _take)
