"""Requests that wait, and the batches they are taken out in.

Knows order, capacity, deadlines and which requests may share a batch. Knows nothing of tensors, engines or networks, and
has no clock of its own. Everything happens on one event loop, so nothing is locked.
"""

import asyncio
import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from seatrial.errors import DeadlinePassed, Overloaded

CALL_TOKENS = 8
"""What a call of an engine costs besides its tokens, as tokens: how much padding it is worth to save one. More makes batches
larger and their padding a larger part; for small text encoders on a CPU anything from 4 to 16 is within 2 % of the best."""

I = TypeVar("I")  # noqa: E741 - what is asked
A = TypeVar("A")  # what is answered


@dataclass(kw_only=True, eq=False)
class Waiting(Generic[I, A]):
    """One admitted request. Its caller holds `answer`; a caller that leaves cancels it."""

    item: I
    rows: int
    size_bytes: int
    kind: Hashable
    """Requests share a batch only with their like."""
    arrived: float
    deadline: float
    answer: asyncio.Future[A]
    graph: str = "main"
    length: int = 0
    """How long its rows are, where rows of different lengths may share a batch and short ones are padded; else 0."""
    level: int = 1
    """1 goes first."""
    queue_deadline: float = math.inf
    """Until when it may wait to be taken for the first time."""
    deaths: int = field(default=0, init=False)
    """Engines that died with this request in hand."""
    alone: bool = False
    """Take it in a batch of its own: it was in company when something went wrong."""
    started: float = field(default=0.0, init=False)

    def deliver(self, answer: A) -> None:
        if not self.answer.done():  # its caller may have gone
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(slots=True, kw_only=True)
class Queue(Generic[I, A]):
    """First come, first served within a level, lower levels first; bounded in requests and in bytes.

    One line in the order in which it is taken: where all are of one level, a request joins at its end.
    """

    max_requests: int
    max_bytes: int
    max_tokens: float = math.inf
    """Most tokens of a batch of rows that have a length, padding included, unless one request alone has more."""
    _waiting: deque[Waiting[I, A]] = field(default_factory=deque)
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting[I, A]]:
        return iter(self._waiting)

    @property
    def oldest(self) -> float | None:
        """When the one who has waited longest arrived."""
        return min((waiting.arrived for waiting in self._waiting), default=None)

    @property
    def rows(self) -> int:
        return sum(waiting.rows for waiting in self._waiting)

    def put(self, waiting: Waiting[I, A]) -> None:
        """Raises `Overloaded` where there is no room, without touching those who wait."""
        if len(self._waiting) >= self.max_requests:
            raise Overloaded(
                f"{len(self._waiting)} requests wait already, the most that serving.batching.max_queue allows"
            )
        if self._waiting and self._bytes + waiting.size_bytes > self.max_bytes:
            raise Overloaded(f"{self._bytes} bytes wait already; serving.batching.max_queue_bytes is {self.max_bytes}")
        line = self._waiting
        if not line or line[-1].level <= waiting.level:
            line.append(waiting)
        else:
            line.insert(bisect_right(line, waiting.level, key=_level), waiting)
        self._bytes += waiting.size_bytes

    def put_back(self, batch: Iterable[Waiting[I, A]]) -> None:
        """Return requests that were taken, in their order, to the head of their level. They were admitted: no bound holds,
        and from now on only their deadline."""
        for waiting in reversed(list(batch)):
            waiting.queue_deadline = math.inf
            self._waiting.insert(bisect_left(self._waiting, waiting.level, key=_level), waiting)
            self._bytes += waiting.size_bytes

    def take(
        self, *, max_rows: int, now: float, only: Callable[[Waiting[I, A]], bool] | None = None
    ) -> list[Waiting[I, A]]:
        """The next batch: the first in line and those behind that may join, at most `max_rows` rows together; of those
        whose rows have no length, `only` some.

        Who left or whose deadline passed is dropped on the way. Empty if nobody is left.
        """
        batch: list[Waiting[I, A]] = []
        passed_over: list[Waiting[I, A]] = []
        rows = 0
        while self._waiting and rows < max_rows:
            waiting = self._waiting.popleft()
            self._bytes -= waiting.size_bytes
            if _gone(waiting, now):
                continue
            if only is not None and not only(waiting):
                passed_over.append(waiting)
                continue
            if not batch:
                if waiting.length and not waiting.alone:
                    return self._with_its_like(waiting, max_rows=max_rows, now=now)
                batch.append(waiting)
                rows = waiting.rows
                if waiting.alone:
                    break
            elif waiting.kind == batch[0].kind and not waiting.alone and rows + waiting.rows <= max_rows:
                batch.append(waiting)
                rows += waiting.rows
            else:
                passed_over.append(waiting)
        for waiting in reversed(passed_over):
            self._waiting.appendleft(waiting)
            self._bytes += waiting.size_bytes
        return batch

    def _with_its_like(self, first: Waiting[I, A], *, max_rows: int, now: float) -> list[Waiting[I, A]]:
        """`first`, and those that make the batch cheaper for each token that is no padding, the nearest in length first."""
        self.expire(now)
        like = [waiting for waiting in self._waiting if waiting.kind == first.kind and not waiting.alone]
        like.sort(key=lambda waiting: (waiting.level, abs(waiting.length - first.length)))
        batch, rows, longest, real = [first], first.rows, first.length, first.rows * first.length
        for waiting in like:
            more, longer = rows + waiting.rows, max(longest, waiting.length)
            useful = real + waiting.rows * waiting.length
            cheaper = (CALL_TOKENS + more * longer) * real <= (CALL_TOKENS + rows * longest) * useful
            if cheaper and more <= max_rows and more * longer <= self.max_tokens:
                batch.append(waiting)
                rows, longest, real = more, longer, useful
        self._remove(batch)
        return batch

    def _remove(self, batch: list[Waiting[I, A]]) -> None:
        taken = set(map(id, batch))
        self._waiting = deque(waiting for waiting in self._waiting if id(waiting) not in taken)
        self._bytes = sum(waiting.size_bytes for waiting in self._waiting)

    def expire(self, now: float) -> None:
        """Drop who left, and tell those whose deadline passed."""
        kept = [waiting for waiting in self._waiting if not _gone(waiting, now)]
        if len(kept) < len(self._waiting):
            self._waiting = deque(kept)
            self._bytes = sum(waiting.size_bytes for waiting in kept)

    def clear(self, error: Exception) -> None:
        """Refuse everybody who waits."""
        for waiting in self._waiting:
            waiting.fail(error)
        self._waiting.clear()
        self._bytes = 0


def _gone(waiting: Waiting[I, A], now: float) -> bool:
    if waiting.answer.done():
        return True
    if now < waiting.deadline and now < waiting.queue_deadline:
        return False
    limit = "its deadline" if now >= waiting.deadline else "serving.batching.queue_timeout_ms"
    waiting.fail(DeadlinePassed(f"waited {now - waiting.arrived:.3f} s in the queue, longer than {limit} allows"))
    return True


def _level(waiting: Waiting[I, A]) -> int:
    return waiting.level
