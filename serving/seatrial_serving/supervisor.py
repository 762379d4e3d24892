"""Brings up what was asked for, and keeps it equal to what the registry says.

For each source there is one generation that takes requests. When a source comes to mean another bundle, the new
generation is started beside the old one, loaded, verified and warmed up; only then do requests go to it, and the old one
ends when its last answer is given. A new one that cannot start changes nothing. The model repository is the same by hand.
"""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

from seatrial.bundle.leftover import Hold
from seatrial.errors import BundleCorrupt, EngineFailed, NotEnoughMemory, NotInRegistry, SeatrialError, UnknownModel
from seatrial.machine import cores, free_memory_bytes, memory_bytes, private_bytes
from seatrial.registry import ModelRef
from seatrial.registry.events import Answered, Resolved, Unresolved
from seatrial.settings import Engines, Serving, Settings
from seatrial_monitoring.metrics import AliasFacts, ServingMetrics
from seatrial_monitoring.series import Swap
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.ensemble import Pipeline
from seatrial_serving.fork_server import ENGINES, ForkServer
from seatrial_serving.gateways import Gateways
from seatrial_serving.generation import Generation, Identity, Spawn
from seatrial_serving.remote import EngineProcess
from seatrial_serving.repository import Listed, ModelState
from seatrial_serving.sequences import StatefulGeneration
from seatrial_serving.sources import OnDisk, Source, describe, plan
from seatrial_serving.triton.folder import TritonModel, TritonRepository
from seatrial_serving.watching import watch
from seatrial_serving.workers import Load, Worker

RETRY_S = 30.0
ENGINE_OVERHEAD_BYTES = 100 * 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a source means at present."""

    path: Path
    digest: str
    alias: str


class Supervisor:
    """Owns every generation, and tells all `gateways`, of which `plane` is the first. `changed` is called whenever readiness
    may have changed; `free_bytes` says how much memory is left for engines."""

    def __init__(
        self,
        settings: Settings,
        plane: DataPlane,
        metrics: ServingMetrics,
        changed: Callable[[], None],
        *,
        gateways: Gateways | None = None,
        forks: ForkServer | None = None,
        free_bytes: Callable[[], int] = free_memory_bytes,
    ) -> None:
        self._settings, self._plane, self._metrics, self._changed = settings, plane, metrics, changed
        self._gateways = gateways or Gateways(plane)
        self._free_bytes = free_bytes
        self._forks = forks or ForkServer(ENGINES)
        self._current: dict[Source, tuple[Target, Generation]] = {}
        self._wanted: dict[Source, Target] = {}
        self._default_sources: dict[str, Source] = {}
        """Which source a bare name means; of the versions of a Triton model, the highest that is up."""
        self._repositories: list[TritonRepository] = []
        self._refs: Sequence[ModelRef] = ()
        self._reconciling: dict[Source, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: set[asyncio.Task[None]] = set()
        self._holds: dict[Generation, Hold] = {}
        """On what is served, so that `seatrial gc` leaves it."""
        self._registry_answered: float | None = None
        self._drifting: dict[Source, float] = {}
        """Since when a reference has meant something else than what is served."""
        self._wish_changed = asyncio.Event()
        self._names: dict[Source, str] = {}
        """Everything that was asked for at the start, and the model in it."""
        self._changing: dict[Source, ModelState] = {}
        """What is being loaded or unloaded because a caller wants it so."""
        self._unloaded: dict[Source, str] = {}
        """What callers do not want to be served, or could not load again, and why."""
        self._locks: defaultdict[Source, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self, sources: Sequence[Source | TritonRepository]) -> None:
        """Bring up all `sources`; until then the server is not ready. Raises the first one's error, if there is one; of a
        repository, only if none of its models can be served.
        """
        self._plane.starting = True
        self._forks.start()
        refs = self._refs = list(dict.fromkeys(source for source in sources if isinstance(source, ModelRef)))
        ensembles = [source for source in sources if isinstance(source, OnDisk) and source.declares_ensemble]
        for source in sources:
            if isinstance(source, OnDisk) and source not in ensembles:
                await self._start_on_disk(source)
            elif isinstance(source, TritonRepository):
                await self._start_repository(source)
            elif isinstance(source, ModelRef):
                self._names[source] = source.name
                self._gateways.expect(source.name)
                self._default_sources.setdefault(source.name, source)
        if refs:
            first = asyncio.get_running_loop().create_future()
            self._run(self._follow(refs, first))
            await first
        for source in ensembles:  # whose models are up now
            await self._start_on_disk(source)
        self._plane.starting = False
        self._changed()

    async def _start_on_disk(self, source: OnDisk) -> None:
        target = self._wanted[source] = Target(path=source.path, digest="", alias="")
        await self._replace(source, target)
        self._names[source] = self._current[source][1].identity.name

    async def _start_repository(self, repository: TritonRepository) -> None:
        self._repositories.append(repository)
        names = repository.in_order()
        for name in names:
            self._gateways.expect(name)
        errors = []
        for name in names:
            try:
                await self._load_all(name)
            except SeatrialError as error:
                log.error("%s cannot be served, or not all of it: %s", name, error)
                errors.append(error)
                self._gateways.forget(name)
        if errors and not any(
            isinstance(each, TritonModel) and each.path.parent == repository.path for each in self._current
        ):
            raise errors[0]

    async def stop(self) -> None:
        """End everything: followers first, then the generations, each with the requests that it still holds."""
        tasks = [*self._tasks, *self._reconciling.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        generations = [generation for _, generation in self._current.values()]
        for generation in generations:
            self._gateways.remove(generation)
        await asyncio.gather(*(generation.drain() for generation in generations), *self._draining)
        self._forks.close()

    # The model repository, for callers who may

    async def index(self) -> list[Listed]:
        return [self._listed(source, name) for source, name in self._names.items()]

    def _listed(self, source: Source, name: str) -> Listed:
        _, generation = self._current.get(source, (None, None))
        up = generation is not None and generation.ready
        return Listed(
            name=name,
            version=generation.identity.version if generation else _version(source),
            state=self._changing.get(source, ModelState.READY if up else ModelState.UNAVAILABLE),
            reason="" if up or source in self._changing else self._unloaded.get(source, "no engine is up"),
        )

    def reload(self) -> None:
        """Load everything again that is served, one after the other, in the background."""
        self._run(self._reload())

    async def _reload(self) -> None:
        served = {name: None for source, name in self._names.items() if source not in self._unloaded}
        for name in served:
            try:
                await self.load(name)
            except SeatrialError as error:
                log.error("%s could not be loaded again; what is served stays: %s", name, error)

    async def load(self, name: str) -> None:
        await self._to_the_end(self._load_all(name))

    async def unload(self, name: str) -> None:
        await self._to_the_end(self._change(self._sources(name), ModelState.UNLOADING, self._unload))

    async def _to_the_end(self, work: Coroutine[None, None, None]) -> None:
        """Even if the caller leaves."""
        await asyncio.shield(self._run(work))

    async def _load_all(self, name: str) -> None:
        """Load what `name` means now, and then end the versions that it does not mean any more."""
        leaving = [source for each in self._repositories for source in await self._list_versions(each, name)]
        loading = [source for source in self._sources(name) if source not in leaving]
        await self._change(loading, ModelState.LOADING, self._load_again)
        for source in leaving:
            await self._unload(source)
            self._names.pop(source, None)
            self._unloaded.pop(source, None)

    def _sources(self, name: str) -> list[Source]:
        sources = [source for source, model in self._names.items() if model == name]
        if not sources:
            others = "" if self._plane.guard else f"; there are {sorted(set(self._names.values()))}"  # as in `resolve`
            raise UnknownModel(f"there is no model {name!r} to load or unload{others}")
        return sources

    async def _change(
        self, sources: Sequence[Source], state: ModelState, change: Callable[[Source], Awaitable[None]]
    ) -> None:
        """Do it to all of them. Raises the first error, if there is one."""
        errors = []
        for source in sources:
            self._changing[source] = state
            try:
                await change(source)
            except SeatrialError as error:
                errors.append(error)
            finally:
                self._changing.pop(source, None)
        if errors:
            raise errors[0]

    async def _list_versions(self, repository: TritonRepository, name: str) -> list[Source]:
        """Note which versions of a Triton model are to be served now; those that are not any more. While that cannot be read,
        what is served stays, and the index has the reason for what is not. Raises that reason.
        """
        model = repository.model(name)
        known = [source for source in self._names if _whole(source) == model]
        if not known and name not in await asyncio.to_thread(repository.models):
            return []
        try:
            wanted = await asyncio.to_thread(repository.versions, name)
        except SeatrialError as error:
            if not known or known == [model]:
                self._names[model], self._unloaded[model] = name, str(error)
            raise
        for version in wanted:
            self._names[version] = name
            self._wanted[version] = Target(path=version.place, digest="", alias="")
        return [source for source in known if source not in wanted]

    async def _load_again(self, source: Source) -> None:
        self._unloaded.pop(source, None)
        try:
            await self._replace(source, self._wanted[source])
        except SeatrialError as error:
            if source not in self._current:
                self._unloaded[source] = str(error)
            raise
        if not isinstance(source, OnDisk):
            self._gateways.expect(self._names[source])

    async def _unload(self, source: Source) -> None:
        async with self._locks[source]:
            self._unloaded[source] = "unloaded"
            self._gateways.forget(self._names[source])
            _, generation = self._current.pop(source, (None, None))
            self._drifting.pop(source, None)
        if generation is not None:
            self._gateways.remove(generation)
            self._crown(source)
            self._changed()
            await self._drain(generation)

    def _crown(self, source: Source) -> None:
        """Let the bare name mean the highest version that is up of the Triton model that `source` is of."""
        up = [each for each in self._current if isinstance(each, TritonModel) and each.whole == _whole(source)]
        if up and self._default_sources[self._names[source]] == _whole(source):
            highest = max(up, key=lambda each: int(each.version))
            self._gateways.install(self._current[highest][1], default=True)

    def registry_age_s(self) -> float:
        """Seconds since the registry last answered, or since it was first asked; -1 where none is followed."""
        if self._registry_answered is None:
            return -1.0
        return time.monotonic() - self._registry_answered

    def aliases(self) -> list[AliasFacts]:
        now = time.monotonic()
        return [
            AliasFacts(model=ref.name, alias=ref.alias, drift_s=now - self._drifting.get(ref, now))
            for ref in self._refs
            if ref.alias
        ]

    async def _follow(self, refs: Sequence[ModelRef], first: "asyncio.Future[None]") -> None:
        """Act on what the watcher tells. `first` is done once every ref has been brought up, or has an error."""
        by_name = {str(ref): ref for ref in refs}
        missing = set(refs)
        began = self._registry_answered = time.monotonic()
        self._drifting = dict.fromkeys(refs, began)
        async with contextlib.aclosing(watch(refs, self._settings)) as events:
            async for event in events:
                match event:
                    case Answered():
                        self._registry_answered = time.monotonic()
                    case Resolved(ref=name):
                        ref = by_name[name]
                        target = Target(path=Path(event.path), digest=event.digest, alias=ref.alias or "")
                        if event.remembered:
                            log.warning("the registry does not answer; %s is served as it was known last", name)
                        if ref in missing:
                            missing.discard(ref)
                            self._wanted[ref] = target
                            await self._bring_up_first(ref, target, first)
                        else:
                            self._want(ref, target)
                    case Unresolved(ref=name, reason=reason):
                        log.error("%s: %s", name, reason)
                        self._drifting.setdefault(by_name[name], time.monotonic())
                        if by_name[name] in missing and not first.done():
                            first.set_exception(NotInRegistry(reason))
                if not missing and not first.done():
                    first.set_result(None)

    async def _bring_up_first(self, ref: ModelRef, target: Target, first: "asyncio.Future[None]") -> None:
        try:
            await self._replace(ref, target)
        except SeatrialError as error:
            log.error("%s cannot be served: %s", ref, error)
            if not first.done():
                first.set_exception(error)

    def _want(self, source: Source, target: Target) -> None:
        self._wanted[source] = target
        self._note_drift(source)
        self._wish_changed.set()
        if source not in self._reconciling:
            task = asyncio.get_running_loop().create_task(self._reconcile(source))
            self._reconciling[source] = task
            task.add_done_callback(lambda _: self._reconciling.pop(source, None))

    async def _reconcile(self, source: Source) -> None:
        """Replace until what is served is what is wanted; a failure is tried again later, or when the wish changes."""
        while source not in self._unloaded and (target := self._wanted[source]) != self._target(source):
            self._wish_changed.clear()
            try:
                await self._replace(source, target)
            except SeatrialError as error:
                log.error("%s: the swap to %s failed and changed nothing: %s", source, target.digest, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wish_changed.wait(), RETRY_S)

    def _note_drift(self, source: Source) -> None:
        served = self._target(source)
        if source in self._unloaded or (served is not None and self._wanted.get(source, served) == served):
            self._drifting.pop(source, None)
        else:
            self._drifting.setdefault(source, time.monotonic())

    def _target(self, source: Source) -> Target | None:
        return self._current[source][0] if source in self._current else None

    async def _replace(self, source: Source, target: Target) -> None:
        """Start a generation of `target` and send requests to it; the old one drains in the background."""
        async with self._locks[source]:
            if source not in self._unloaded:
                await self._swap(source, target)

    async def _swap(self, source: Source, target: Target) -> None:
        before = self._current.get(source)
        try:
            await self._bring_up(source, target)
        except SeatrialError:
            if before is not None and source not in self._current:  # it had to make room
                log.error("%s: the new version cannot start; the old one is started again", source)
                await self._bring_up(source, before[0])
            raise

    async def _bring_up(self, source: Source, target: Target) -> None:
        identity, serving = await asyncio.to_thread(describe, target.path, self._settings.serving, alias=target.alias)
        if target.digest and identity.digest != target.digest:
            raise BundleCorrupt(f"{target.path} has digest {identity.digest}, the registry says {target.digest}")
        metrics = self._metrics.model(identity.name, identity.version, identity.variant)
        swaps = self._metrics.swaps[identity.name]
        _, old = self._current.get(source, (None, None))
        began = time.monotonic()
        hold = Hold(target.path)
        try:
            spawn, count, of_what = self._engines(target, identity, serving)
            if old is not None and not self._fits(target, old):
                await self._make_room(source, old, serving.engines)
            gently = any(generation.ready for generation in self._plane.generations())
            kind = StatefulGeneration if identity.stateful else Generation
            new = await kind.start(identity, spawn, count=count, metrics=metrics, settings=serving, gently=gently)
        except BaseException:
            hold.release()
            if old is not None:
                swaps[Swap.FAILED] += 1
            raise
        self._holds[new] = hold
        whole = _whole(source) or source
        default = self._default_sources.setdefault(identity.name, whole) == whole
        self._gateways.install(new, default=default)
        self._current[source] = (target, new)
        self._crown(source)
        self._note_drift(source)
        took_s = time.monotonic() - began
        log.info(
            "%s %s is ready after %.2f s: %d %s, %s",
            *(identity, identity.variant, took_s, count, of_what),
            identity.digest[:19] if identity.verified else "UNVERIFIED: nothing vouches for its answers",
        )
        if old is not None:
            swaps[Swap.DONE] += 1
            self._gateways.remove(old)
            new.follow(old)
            sequences_s = serving.sequences.swap_s if new.stateful else 0.0
            draining = asyncio.get_running_loop().create_task(self._drain(old, sequences_s=sequences_s))
            self._draining.add(draining)
            draining.add_done_callback(self._draining.discard)
        self._changed()
        await self._gateways.settle()

    def _engines(self, target: Target, identity: Identity, serving: Serving) -> tuple[Spawn, int, str]:
        """How to start one, how many there are to be, and what they are, for people. Raises `InvalidSource`."""
        steps = plan(target.path, self._plane.resolve)
        if steps is not None:

            async def pipeline(*, wide: bool, gently: bool) -> Worker:  # noqa: ARG001 - it has no cores of its own
                return Pipeline(steps, self._plane.resolve)

            return pipeline, steps.ensemble.pipelines, "pipelines"
        count, threads = share(target.path, serving.engines)

        async def engine(*, wide: bool, gently: bool) -> Worker:
            load = _load(target, identity, threads, serving, wide=wide, gently=gently)
            try:
                return await EngineProcess.start(load, forks=self._forks, shared=self._gateways.several)
            except OSError as error:  # no process, memory or descriptor is left for it
                raise EngineFailed(f"no engine process can be started for {identity}: {error}") from error

        return engine, count, f"engines with {threads} threads"

    def _fits(self, target: Target, old: Generation) -> bool:
        """Whether engines of `target` fit beside those of `old`, which tell what engines of that model take."""
        before = next((each for each, generation in self._current.values() if generation is old), target)
        growth = max(1.0, _size_bytes(target.path) / max(1, _size_bytes(before.path)))
        return growth * sum(map(private_bytes, old.pids)) <= self._free_bytes()

    async def _make_room(self, source: Source, old: Generation, engines: Engines) -> None:
        """End `old`, if the settings want that. Raises `NotEnoughMemory` otherwise."""
        if engines.no_room == "refuse":
            raise NotEnoughMemory(
                f"{old.identity} goes on: its engines take {sum(map(private_bytes, old.pids)) >> 20} MiB, and "
                f"{self._free_bytes() >> 20} MiB are free for new ones beside them. Give the server more memory, fewer "
                "engines, or serving.engines.no_room=unload_first"
            )
        log.warning("%s is ended first: memory does not hold the new version beside it", old.identity)
        self._gateways.expect(old.identity.name)  # not ready, rather than unknown
        self._gateways.remove(old)
        del self._current[source]
        self._changed()
        await self._drain(old)

    async def _drain(self, generation: Generation, *, sequences_s: float = 0.0) -> None:
        await self._gateways.drained(generation)
        await generation.drain(sequences_s=sequences_s)
        if (hold := self._holds.pop(generation, None)) is not None:  # it is drained twice where room was made
            hold.release()
        log.info("%s %s has ended", generation.identity, generation.identity.variant)

    def _run(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            trace = None if isinstance(error, SeatrialError) else error
            log.error("a task of the supervisor failed: %s", error, exc_info=trace)


def _version(source: Source) -> str:
    """As far as it is known before anything is loaded."""
    return source.version if isinstance(source, TritonModel) else ""


def _whole(source: Source) -> TritonModel | None:
    """The Triton model that `source` is a version of."""
    return source.whole if isinstance(source, TritonModel) else None


def _load(target: Target, identity: Identity, threads: int, serving: Serving, *, wide: bool, gently: bool) -> Load:
    return Load(
        path=target.path,
        digest=identity.digest,
        threads=threads,
        wide_threads=cores() if wide and serving.engines.threads is None else 0,
        warm_up=(1, serving.batching.max_size),
        start_s=serving.engines.start_s,
        gently=gently,
    )


def share(path: Path, engines: Engines) -> tuple[int, int]:
    """How many engine processes, and threads for each: two that share the cores, or one where memory is short."""
    each_bytes = ENGINE_OVERHEAD_BYTES + 3 * _size_bytes(path)
    count = engines.count or (2 if 2 * each_bytes < memory_bytes() / 2 else 1)
    return count, engines.threads or max(1, cores() // count)


def _size_bytes(path: Path) -> int:
    """What a file takes, or all files of a directory."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
