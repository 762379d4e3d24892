"""What the supervisor and a further gateway say arrives whole, in order, with its descriptors, or is known to be lost."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from seatrial.errors import EngineFailed, NotReady, UnknownModel
from seatrial_serving import control
from seatrial_serving.channel import socket_pair
from seatrial_serving.control import Done, Expect, Index, Kill, Link, Listing, Load, Refusal, Said, Settle
from seatrial_serving.repository import Listed, ModelState
from tests.conditions import soon

pytestmark = pytest.mark.anyio


@dataclass
class Heard:
    said: list[Said] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    lost: int = 0

    def hear(self, said: Said, descriptors: list[int], number: int) -> None:
        self.said.append(said)
        self.descriptors += descriptors
        if number:
            self.questions.append(number)

    def lose(self) -> None:
        self.lost += 1


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, Link, Heard, Heard]]:
    one, other = socket_pair()
    here, there = Heard(), Heard()
    links = Link(one, here.hear, here.lose), Link(other, there.hear, there.lose)
    try:
        yield *links, here, there
    finally:
        for link in links:
            link.close()


async def test_what_is_told_arrives_in_its_order_however_long_it_is_and_however_much() -> None:
    async with linked() as (ours, _, _, there):
        names = [str(number) * (100_000 if number % 50 == 7 else 1000) for number in range(500)]
        for name in names:
            ours.tell(Expect(name))
        await soon(lambda: len(there.said) == len(names))
        assert there.said == [Expect(name) for name in names]


async def test_descriptors_come_with_their_message_and_are_closed_where_they_came_from(tmp_path: Path) -> None:
    async with linked() as (ours, _, _, there):
        before = open_descriptors()
        for number, name in enumerate(("a", "b" * 100_000)):
            (tmp_path / str(number)).write_text(str(number))
            ours.tell(Expect(name), [os.open(tmp_path / str(number), os.O_RDONLY)])
        await soon(lambda: len(there.said) == 2)
        assert open_descriptors() == before + 2
        for number, descriptor in enumerate(there.descriptors):
            assert os.read(descriptor, 10) == str(number).encode()
            os.close(descriptor)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_each_question_gets_its_own_answer() -> None:
    async with linked() as (ours, theirs, _, there):
        asked = [ours.ask(Index()), ours.ask(Load("a")), ours.ask(Settle())]
        await soon(lambda: len(there.questions) == 3)
        index, load, settle = there.questions
        listed = tuple(Listed(name=str(number), version="1", state=ModelState.READY) for number in range(5000))
        theirs.answer(settle, Done())
        theirs.answer(load, Refusal("UnknownModel", "there is no 'a'"))
        theirs.answer(index, Listing(listed))
        assert await asked[2] == Done()
        with pytest.raises(UnknownModel, match="there is no 'a'"):
            await asked[1]
        assert await asked[0] == Listing(listed)


async def test_a_refusal_may_name_errors_of_ours_only() -> None:
    async with linked() as (ours, theirs, _, there):
        asked = ours.ask(Load("a"))
        await soon(lambda: there.questions)
        theirs.answer(there.questions[0], Refusal("KeyboardInterrupt", "now"))
        with pytest.raises(EngineFailed, match="KeyboardInterrupt: now"):
            await asked


async def test_whoever_asks_an_end_that_goes_is_told() -> None:
    async with linked() as (ours, theirs, here, _):
        asked = ours.ask(Settle())
        theirs.close()
        with pytest.raises(NotReady, match="ended before it answered"):
            await asked
        assert here.lost == 1
        ours.tell(Kill(1))  # to nobody
        with pytest.raises(NotReady):
            await ours.ask(Settle())


async def test_nonsense_ends_the_link() -> None:
    one, other = socket_pair()
    here = Heard()
    link = Link(one, here.hear, here.lose)
    with other:
        other.send(b"\x93\x00\xc2\x91\xa6Nobody")
        await soon(lambda: here.lost == 1)
    link.close()


def test_the_first_message_is_waited_for() -> None:
    one, other = socket_pair()
    with one, other:
        one.send(control._encode(control.Frame(0, answers=False, said=Expect("a"))))
        assert control.receive(other) == (Expect("a"), [])
        one.shutdown(socket.SHUT_RDWR)
        with pytest.raises(EOFError):
            control.receive(other)
