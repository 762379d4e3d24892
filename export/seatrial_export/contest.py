"""From verified candidates to variants: timed against each other on the stand, until it is clear which is the cheapest.

The rounds are spent by successive halving (Jamieson and Talwalkar 2016): everybody gets a first stretch, which shows who is on
the Pareto front; after each stretch half of them leave, but for those who may still be as cheap as the fastest, and those who
stay get as much time together as all had before. So the last are timed in as many rounds as if they had been alone, and many
candidates take hardly longer than a few.

Nothing else of ours may run meanwhile. Who stays, and who must still be told apart, is somebody else's to say.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

from seatrial.bundle import Bundle
from seatrial.bundle.evidence import Quality, Timing
from seatrial.errors import ConversionFailed, InvalidSettings
from seatrial.tensors import DynamicAxis, Signature
from seatrial_export.candidate import Candidate, Lost, Verdict
from seatrial_export.choose import Variant, noise
from seatrial_export.exam import resized
from seatrial_export.measure import (
    FEWEST_ROUNDS,
    MAX_ROUNDS,
    MIN_ROUNDS,
    THROUGHPUT_BATCH,
    Clock,
    Rounds,
    throughput_batch,
)
from seatrial_export.samples import Inputs, calls, fixed_size, repeat, write_arrays
from seatrial_export.stand import Mounted, Stand
from seatrial_export.verify import Proof

Halved: TypeAlias = Callable[[Sequence[Variant]], Sequence[Variant]]
"""Those that are worth more rounds."""
Undecided: TypeAlias = Callable[[Sequence[Variant]], Sequence[tuple[Variant, ...]]]
"""The groups that must still be told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of a call. Rows are as long as they come where `length` is None."""

    batch: int
    length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the calls that are timed, as somebody named them: every batch at every length.

    Latency counts at the smallest batch, cost at the largest, both at the largest length. Where none is named, those are one
    row and a full batch, of rows as they come.
    """

    batches: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    def check(self, signature: Signature) -> None:
        """Raise `InvalidSettings` for a size that was not verified."""
        for batch in self.batches:
            if signature.batch is None:
                raise InvalidSettings(f"--batch {batch}: the model takes calls of one fixed size; leave it out")
            _check(f"--batch {batch}", batch, signature.batch)
        for length in self.lengths:
            if (axis := length_axis(signature)) is None:
                raise InvalidSettings(f"--length {length}: the model has no single axis beside the batch that may vary")
            _check(f"--length {length}", length, axis)

    def listed(self, *, full: int) -> list[Size]:
        """From the smallest to the largest; `full` is the batch that is taken where none is named."""
        lengths: list[int | None] = [*sorted({*self.lengths})] or [None]
        batches = sorted({*self.batches} or {1, full})
        return [Size(batch=batch, length=length) for batch in batches for length in lengths]

    def usual(self, signature: Signature) -> dict[str, int]:
        """Of each dynamic axis the size at which cost counts, before anything was timed; of one without, its largest."""
        found = {axis.name: axis.max for axis in signature.dynamic_axes}
        if signature.batch:
            found[signature.batch.name] = max(self.batches, default=min(signature.batch.max, THROUGHPUT_BATCH))
        if self.lengths and (length := length_axis(signature)):
            found[length.name] = max(self.lengths)
        return found


def _check(what: str, size: int, axis: DynamicAxis) -> None:
    if not axis.min <= size <= axis.max:
        raise InvalidSettings(f"{what} was not verified: the axis '{axis.name}' goes from {axis.min} to {axis.max}")


def length_axis(signature: Signature) -> DynamicAxis | None:
    """The axis of a sequence's length: the one that may be padded, or the only one beside the batch."""
    others = [axis for axis in signature.dynamic_axes if axis != signature.batch]
    return signature.sequence or (others[0] if len(others) == 1 else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """`for_s` is for each size, all variants together; those that may be chosen get at most `longer_s` more, to be told apart."""

    for_s: float
    longer_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`notes` are clauses for the report."""

    variants: tuple[Variant, ...]
    lost: tuple[Lost, ...]
    notes: tuple[str, ...]


class Entrant(Protocol):
    """Who takes part: what was verified."""

    @property
    def candidate(self) -> Candidate: ...
    @property
    def bundle(self) -> Bundle: ...
    @property
    def proof(self) -> Proof: ...
    @property
    def quality(self) -> Quality: ...


def contest(
    verified: Sequence[Entrant],
    rows: Inputs,
    *,
    stand: Stand,
    folder: Path,
    sizes: Sizes,
    pace: Pace,
    halved: Halved,
    undecided: Undecided,
    clock: Clock = time.monotonic,
) -> Outcome:
    """Time them. `folder` gets the inputs; an engine that fails here costs itself alone."""
    if not verified:
        return Outcome(variants=(), lost=(), notes=())
    with ExitStack() as stack:
        material = _Material(verified[0].bundle.manifest.signature, rows, folder)
        held = _Contest(verified, material, stand, stack, clock)
        listed = sizes.listed(full=held.full_batch() if not sizes.batches else 1)
        stretches = max(1, math.ceil(math.log2(len(verified))))
        variants: tuple[Variant, ...] = ()
        staying = {each.candidate.name for each in verified}
        for _ in range(stretches):
            held.play(listed, staying, for_s=pace.for_s / stretches, of=stretches)
            variants = held.variants()
            played = [each for each in variants if each.candidate.name in staying]
            staying = {each.candidate.name for each in halved(played)}
        until = clock() + pace.longer_s
        while (groups := undecided(variants)) and clock() < until:
            held.play_on(groups, for_s=min(pace.for_s, pace.longer_s) / len(groups))
            variants = held.variants()
    return Outcome(variants=variants, lost=held.lost, notes=tuple(map(noise, groups)))


@dataclass(frozen=True, slots=True)
class _Material:
    """Calls of any size, each written once, for all engines to read."""

    signature: Signature
    rows: Inputs
    folder: Path

    def inputs(self, size: Size) -> Inputs:
        one = repeat(self.rows, size.batch) if self.signature.batch else next(calls(self.signature, self.rows, size=1))
        axis = length_axis(self.signature)
        return one if size.length is None or axis is None else resized(one, axis, size.length)

    def file(self, size: Size) -> Path:
        path = self.folder / f"calls-{size.batch}-{size.length or 'as-they-come'}.npz"
        if not path.exists():
            write_arrays(path, self.inputs(size))
        return path


class _Contest:
    def __init__(
        self, verified: Sequence[Entrant], material: _Material, stand: Stand, stack: ExitStack, clock: Clock
    ) -> None:
        """`stack` gets what must be closed at the end."""
        self._verified = {each.candidate.name: each for each in verified}
        self._material, self._threads, self._clock = material, stand.threads, clock
        self._lost: dict[str, ConversionFailed] = {}
        self._engines: dict[str, Mounted] = {}
        self._rounds: dict[Size, Rounds] = {}
        for name, each in self._verified.items():
            try:
                engine = stand.mount(each.bundle, inputs=material.file(Size(batch=1)))
            except ConversionFailed as error:
                self._lost[name] = error
            else:
                self._engines[name] = engine
                stack.callback(engine.close)

    @property
    def lost(self) -> tuple[Lost, ...]:
        return tuple(
            Lost(
                candidate=self._verified[name].candidate,
                verdict=Verdict.NOT_MEASURED,
                reason=error.reason,
                log=error.log,
            )
            for name, error in self._lost.items()
        )

    @property
    def _standing(self) -> Mapping[str, Mounted]:
        return {name: engine for name, engine in self._engines.items() if name not in self._lost}

    def full_batch(self) -> int:
        batch = self._material.signature.batch
        if batch is None:
            return 1
        return throughput_batch([partial(self._call_ms, name) for name in self._standing], limit=batch.max)

    def _call_ms(self, name: str, batch: int) -> float:
        """How long one call takes; no time where it is lost by it."""
        if name not in self._lost:
            try:
                return min(self._engines[name].call(self._material.file(Size(batch=batch)), 1))
            except ConversionFailed as error:
                self._lost[name] = error
        return 0.0

    def play(self, sizes: Sequence[Size], names: Collection[str], *, for_s: float, of: int) -> None:
        """One of so many stretches."""
        at_least, at_most = max(FEWEST_ROUNDS, math.ceil(MIN_ROUNDS / of)), MAX_ROUNDS // of
        for size in sizes:
            rounds = self._rounds_of(size)
            rounds.play(
                [name for name in self._standing if name in names], for_s=for_s, at_least=at_least, at_most=at_most
            )
            self._lost |= rounds.lost

    def _rounds_of(self, size: Size) -> Rounds:
        if size not in self._rounds:
            file = self._material.file(size)
            asks = {name: partial(engine.call, file) for name, engine in self._standing.items()}
            self._rounds[size] = Rounds(asks, clock=self._clock)
        return self._rounds[size]

    def play_on(self, groups: Sequence[tuple[Variant, ...]], *, for_s: float) -> None:
        """More rounds of the largest size between those who are not yet told apart."""
        rounds = self._rounds[list(self._rounds)[-1]]
        for group in groups:
            rounds.play([variant.candidate.name for variant in group], for_s=for_s)
        self._lost |= rounds.lost

    def variants(self) -> tuple[Variant, ...]:
        return tuple(self._variant(name) for name in self._standing)

    def _variant(self, name: str) -> Variant:
        sizes = list(self._rounds)
        smallest = [size for size in sizes if size.batch == sizes[0].batch]
        alone, throughput = smallest[-1], sizes[-1]
        verified, engine = self._verified[name], self._engines[name]
        return Variant(
            candidate=verified.candidate,
            proof=verified.proof,
            quality=verified.quality,
            alone=self._timing(name, alone),
            throughput=self._timing(name, throughput),
            row_ms=self._rounds[throughput].typical_ms(name) / self._batch(throughput),
            rounds=self._rounds[throughput].medians(name),
            size_bytes=verified.bundle.model_bytes,
            memory_bytes=engine.memory_bytes,
            load_s=engine.load_s,
            more=tuple(self._timing(name, size) for size in sizes if size not in (alone, throughput)),
        )

    def _timing(self, name: str, size: Size) -> Timing:
        return self._rounds[size].timing(name, batch=self._batch(size), length=size.length, threads=self._threads)

    def _batch(self, size: Size) -> int:
        signature = self._material.signature
        return size.batch if signature.batch else fixed_size(signature)
