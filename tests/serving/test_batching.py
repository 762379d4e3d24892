import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from seatrial.errors import DeadlinePassed, Overloaded
from seatrial_serving.batching import Queue, Waiting


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Futures want a loop; nothing here runs on it."""
    new = asyncio.new_event_loop()
    asyncio.set_event_loop(new)
    yield new
    asyncio.set_event_loop(None)
    new.close()


def waiting(
    number: int,
    *,
    rows: int = 1,
    kind: str = "a",
    deadline: float = 100.0,
    alone: bool = False,
    size: int = 1,
    level: int = 1,
    queue_deadline: float = math.inf,
) -> Waiting[int, int]:
    return Waiting(
        item=number,
        rows=rows,
        size_bytes=size,
        kind=kind,
        arrived=0.0,
        deadline=deadline,
        answer=asyncio.get_event_loop_policy().get_event_loop().create_future(),
        alone=alone,
        level=level,
        queue_deadline=queue_deadline,
    )


def queue(*line: Waiting[int, int], max_requests: int = 100, max_bytes: int = 1000) -> Queue[int, int]:
    made: Queue[int, int] = Queue(max_requests=max_requests, max_bytes=max_bytes)
    for each in line:
        made.put(each)
    return made


def items(batch: list[Waiting[int, int]]) -> list[int]:
    return [each.item for each in batch]


requests: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.builds(
        dict,
        rows=st.integers(1, 4),
        kind=st.sampled_from("ab"),
        alone=st.booleans(),
        deadline=st.sampled_from([5.0, 100.0]),
        queue_deadline=st.sampled_from([7.0, math.inf]),
        level=st.integers(1, 3),
        left=st.booleans(),
    ),
    max_size=30,
)


@given(requests, st.integers(4, 16))
def test_every_request_is_taken_once_in_fitting_company_or_dropped_for_a_reason(
    asked: list[dict[str, Any]], max_rows: int
) -> None:
    line = [waiting(n, **{k: v for k, v in each.items() if k != "left"}) for n, each in enumerate(asked)]
    q = queue(*line)
    for each, facts in zip(line, asked, strict=True):
        if facts["left"]:
            each.answer.cancel()

    taken: list[int] = []
    while batch := q.take(max_rows=max_rows, now=10.0):
        assert sum(each.rows for each in batch) <= max_rows
        assert len({each.kind for each in batch}) == 1
        assert len(batch) == 1 or not any(each.alone for each in batch)
        order = [(line[n].level, n) for n in items(batch)]
        assert order == sorted(order), "lower levels first, first come first served within one"
        assert batch[0].level <= min((each.level for each in q), default=batch[0].level), "nobody more urgent waits"
        taken += items(batch)

    assert len(q) == 0
    in_time = [min(each["deadline"], each["queue_deadline"]) > 10.0 for each in asked]
    assert sorted(taken) == [n for n, each in enumerate(asked) if not each["left"] and in_time[n]]
    for each, facts, soon_enough in zip(line, asked, in_time, strict=True):
        if not facts["left"] and not soon_enough:
            assert isinstance(each.answer.exception(), DeadlinePassed)


@given(requests)
def test_the_head_of_the_line_is_always_in_the_next_batch(asked: list[dict[str, Any]]) -> None:
    line = [waiting(n, rows=each["rows"], kind=each["kind"], level=each["level"]) for n, each in enumerate(asked)]
    q = queue(*line)
    assert list(q) == sorted(line, key=lambda each: (each.level, each.item))
    while len(q):
        head = next(iter(q))
        assert q.take(max_rows=4, now=0.0)[0] is head


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 3)), max_size=40), st.integers(1, 10))
def test_the_queue_never_holds_more_than_its_bounds(asked: list[tuple[int, int]], max_requests: int) -> None:
    q = queue(max_requests=max_requests, max_bytes=1000)
    held = 0
    for n, (size, level) in enumerate(asked):
        fits = len(q) < max_requests and (len(q) == 0 or held + size <= 1000)
        if fits:
            q.put(waiting(n, size=size, level=level))
            held += size
        else:
            with pytest.raises(Overloaded):
                q.put(waiting(n, size=size, level=level))
    while batch := q.take(max_rows=1, now=0.0):
        held -= batch[0].size_bytes
    assert held == 0


def test_what_is_put_back_is_first_again_in_its_order() -> None:
    q = queue(*(waiting(n) for n in range(6)))
    first = q.take(max_rows=3, now=0.0)
    q.put_back(first)
    assert items(q.take(max_rows=6, now=0.0)) == [0, 1, 2, 3, 4, 5]


def test_what_is_put_back_is_first_of_its_level_and_newcomers_still_find_their_place() -> None:
    q = queue(waiting(0, level=2), waiting(1, level=3), waiting(2, level=3))
    taken = q.take(max_rows=2, now=0.0)
    q.put(waiting(3, level=1))
    q.put(waiting(4, level=2))
    q.put_back(taken)
    q.put(waiting(5, level=2))
    q.put(waiting(6, level=1))
    assert items(list(q)) == [3, 6, 0, 4, 5, 1, 2]


def test_a_request_that_was_taken_in_time_may_wait_again_until_its_deadline() -> None:
    q = queue(waiting(0, queue_deadline=1.0))
    q.put_back(q.take(max_rows=1, now=0.5))
    assert items(q.take(max_rows=1, now=99.0)) == [0]


def test_the_message_names_the_limit_that_passed() -> None:
    late, dead = waiting(0, queue_deadline=1.0), waiting(1, deadline=1.0)
    queue(late, dead).expire(now=2.0)
    assert "serving.batching.queue_timeout_ms" in str(late.answer.exception())
    assert "its deadline" in str(dead.answer.exception())


def test_expiry_tells_those_whose_deadline_passed_and_keeps_the_others() -> None:
    soon, late, gone = waiting(0, deadline=1.0), waiting(1), waiting(2)
    q = queue(soon, late, gone)
    gone.answer.cancel()
    q.expire(now=2.0)
    assert items(list(q)) == [1]
    assert isinstance(soon.answer.exception(), DeadlinePassed)
    assert not late.answer.done()


@pytest.mark.parametrize(
    "leave", [lambda w: w.answer.cancel(), lambda w: w.deliver(1), lambda w: w.fail(Overloaded("full"))]
)
def test_a_second_answer_is_ignored(leave: Callable[[Waiting[int, int]], object]) -> None:
    each = waiting(0)
    leave(each)
    each.deliver(2)
    each.fail(DeadlinePassed("late"))
    assert each.answer.cancelled() or each.answer.exception() is not None or each.answer.result() == 1


def test_clearing_refuses_everybody() -> None:
    line = [waiting(n) for n in range(3)]
    q = queue(*line)
    q.clear(Overloaded("stopping"))
    assert len(q) == 0
    assert all(isinstance(each.answer.exception(), Overloaded) for each in line)
