"""`evidence.json`: what was measured about a bundle, where and with what.

Names the bundle by its content digest and may be replaced at any time without changing it.
"""

import msgspec

from seatrial.bundle.manifest import EngineSpec, Hardware
from seatrial.errors import BundleCorrupt
from seatrial.machine import Machine


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bundle came from. Digests are of the data that was used; empty where there was none."""

    source: str
    export_run: str = ""
    training_run: str = ""
    data_digest: str = ""
    calibration_digest: str = ""
    seed: int = 0
    tools: dict[str, str] = {}


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How good the variant is at its task, beside the source model on the same rows.

    `basis` says by what: `labels` (the metric of the recipe on held-out data) or `agreement` (with the source's own
    answers, where no labels came with the model). `drop_upper` is the upper end of the paired 95 % interval of
    `source_value - value`.
    """

    metric: str
    basis: str
    rows: int
    value: float
    source_value: float
    drop_upper: float


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How far the variant's outputs lie from the source's over the whole grid of verification."""

    cases: int
    max_absolute: float
    max_relative: float
    top1: float
    cosine: float


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Latency of one call of the engine, milliseconds; `low_ms` and `high_ms` bound the median with 95 % confidence.

    `length` is that of its rows along the axis that may vary, where somebody asked for one.
    """

    batch: int
    threads: int
    p50_ms: float
    p99_ms: float
    low_ms: float
    high_ms: float
    rounds: int
    length: int | None = None


class Sibling(msgspec.Struct, frozen=True, kw_only=True):
    """Another bundle of the same model version, for another target: what to serve where this one cannot run."""

    target: str
    variant: str
    digest: str
    engine: EngineSpec
    hardware: Hardware | None = None


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What a server held with these settings, of `serving`, within the bound; or why it cannot be said (`lost`).

    `callers` were asking at once, and `memory_bytes` is what all of its processes took at most, shared pages counted once.
    """

    settings: dict[str, int | float | None]
    per_second: float = 0.0
    p99_ms: float = 0.0
    callers: int = 0
    memory_bytes: int = 0
    lost: str = ""


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """What `seatrial tune` found: the settings, of `serving`, under which a server of this bundle answers the most requests
    with a p99 latency of at most `p99_ms`.

    `settings` is empty where those that held without it are as good, or nothing was `proved`. `gain` is requests a second, to
    theirs: the median of the paired rounds, and the ends of its 90 % interval. `held_per_second` is the rate of requests,
    due whatever the server did, at which the bound was kept; 0 where that was not seen.
    """

    p99_ms: float
    written_at: str
    machine: Machine
    traffic: str
    settings: dict[str, int | float | None]
    gain: tuple[float, float, float] | None
    proved: bool
    held_per_second: float
    verdict: str
    tried: tuple[Tried, ...]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    bundle: str
    written_at: str
    machine: Machine
    provenance: Provenance
    quality: Quality | None = None
    agreement: Agreement | None = None
    timings: tuple[Timing, ...] = ()
    size_bytes: int = 0
    memory_bytes: int = 0
    load_s: float = 0.0
    budget: dict[str, float] = {}
    siblings: tuple[Sibling, ...] = ()
    tuning: Tuning | None = None

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"

    @staticmethod
    def decode(text: bytes, *, where: str) -> "Evidence":
        try:
            return msgspec.json.decode(text, type=Evidence)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BundleCorrupt(f"{where} is not evidence of a bundle: {error}") from error
