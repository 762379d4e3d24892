"""The request log may lose records and says how many; it never makes a request wait and never holds a payload."""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial_monitoring.request_log import Record, RequestLog
from tests.conditions import until
from tests.servers import serving
from tests.serving.models import linear_onnx


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test closed it


def record(*, rows: int = 1, error: str = "") -> Record:
    return Record("rest", "7", "linear", "1", "onnx", "ok", rows, 1.5, 0.5, error=error)


def test_each_record_is_one_line_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        log = RequestLog(file.fileno())
        for number in range(5000):
            log.write(record(rows=number))
        log.close()
    assert [json.loads(line)["rows"] for line in path.read_text().splitlines()] == list(range(5000))
    assert (log.written, log.dropped) == (5000, 0)


def test_a_reader_that_stalls_costs_records_and_no_time(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = RequestLog(writer, max_records=1000)
    filled = record(error="x" * 200)
    longest = 0.0
    for _ in range(20_000):
        began = time.perf_counter()
        log.write(filled)
        longest = max(longest, time.perf_counter() - began)
    assert longest < 0.1, "the pipe holds 64 KiB, so a write that waited would wait for ever"
    assert log.dropped >= 20_000 - 1000 - 2 * 2000, "what waits, and what the thread has in hand, is bounded"
    os.close(reader)
    until(lambda: log.dropped + log.written == 20_000)
    log.close()


def test_once_the_reader_has_gone_every_record_is_counted_at_once(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    log = RequestLog(writer)
    log.write(record())
    until(lambda: log.dropped == 1)
    log.write(record())
    assert log.dropped == 2
    assert log.written == 0
    log.close()


def test_what_a_full_disk_has_no_room_for_waits_and_what_waits_is_bounded(tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    log = RequestLog(descriptor, max_records=10)
    log.write(record(rows=0))
    until(lambda: log._held_up)
    for number in range(1, 21):
        log.write(record(rows=number))
    assert (log.written, log.dropped) == (0, 10)
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), descriptor)
    until(lambda: log.written == 11)
    log.close()
    os.close(descriptor)
    numbers = [json.loads(line)["rows"] for line in (tmp_path / "log").read_text().splitlines()]
    assert numbers == [0, *range(11, 21)], "the oldest of those that waited were dropped"


def test_what_could_not_be_written_until_the_end_is_counted() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        log = RequestLog(full.fileno())
        for _ in range(3):
            log.write(record())
        log.close()
    assert (log.written, log.dropped) == (0, 3)


def test_a_line_that_was_begun_is_finished(pipe: tuple[int, int]) -> None:
    """A pipe that does not wait takes what it has room for, in the middle of a line."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    log = RequestLog(writer)
    for number in range(3000):
        log.write(record(rows=number))
    until(lambda: log._held_up)
    parts: list[bytes] = []
    while sum(part.count(b"\n") for part in parts) < 3000:
        parts.append(os.read(reader, 65536))
    log.close()
    assert [json.loads(line)["rows"] for line in b"".join(parts).splitlines()] == list(range(3000))
    assert (log.written, log.dropped) == (3000, 0)


@given(st.lists(st.booleans(), max_size=300), st.sampled_from([0.01, 0.25, 0.5, 1.0]))
def test_all_failures_and_an_even_share_of_the_rest_are_taken(failed: list[bool], share: float) -> None:
    with Path(os.devnull).open("wb") as nowhere:
        log = RequestLog(nowhere.fileno(), share=share)
        taken = [log.takes(failed=each) for each in failed]
        log._closing.set()
    assert all(took for took, each in zip(taken, failed, strict=True) if each)
    well = [took for took, each in zip(taken, failed, strict=True) if not each]
    assert abs(sum(well) - share * len(well)) < 1


def test_a_server_logs_its_share_and_every_failure_without_payloads(tmp_path: Path) -> None:
    quarter = {"SEATRIAL_SERVING__REQUEST_LOG_SHARE": "0.25"}
    with serving(linear_onnx(tmp_path / "m.onnx"), place=tmp_path / "server", environment=quarter) as server:
        for row in ([31337.0, 0, 0, 0], [31337.0, 0, 0]):
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": [row]}
            for number in range(8):
                httpx.post(server.url("/v2/models/m/infer"), json={"id": str(number), "inputs": [tensor]})
        until(lambda: server.total("seatrial_request_log_written_total") == 10)
        assert server.total("seatrial_request_log_dropped_total") == 0
        assert [(record["id"], record["outcome"]) for record in server.log()] == [
            ("3", "ok"),
            ("7", "ok"),
            *((str(number), "client_error") for number in range(8)),
        ]
        assert "31337" not in server.out.read_text()


def test_lines_of_several_processes_are_not_mixed(pipe: tuple[int, int]) -> None:
    """Two that write to one pipe, each with the lock opened for itself; the pipe holds a few of their lines only."""
    reader, writer = pipe
    memory = os.memfd_create("lock")
    locks = [os.open(f"/proc/self/fd/{memory}", os.O_RDONLY) for _ in range(2)]
    logs = [RequestLog(writer, lock=lock) for lock in locks]
    for number in range(2000):
        for log in logs:
            log.write(record(rows=number, error="x" * 1000))
    with ThreadPoolExecutor(3) as threads:
        closing = [threads.submit(log.close) for log in logs]
        read = threads.submit(_read_lines, reader, 4000)
        assert sorted(json.loads(line)["rows"] for line in read.result()) == sorted([*range(2000)] * 2)
        for each in closing:
            each.result()
    for descriptor in (memory, *locks):
        os.close(descriptor)


def _read_lines(descriptor: int, count: int) -> list[bytes]:
    with open(descriptor, "rb", closefd=False) as lines:
        return [next(lines) for _ in range(count)]
