"""The wall clock jumps while a server runs: nothing is late, lost or lasting because of it, and only expiry goes by it."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import jwt
import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.callers import Made, grant
from tests.serving.models import LinearBundle, linear
from tests.tools import absent

X = [[1.0, 2.0, 3.0, 4.0]]
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
TRUTH = linear(X).tolist()
HOUR_S = 3600


@dataclass(frozen=True)
class Clock:
    """The wall clock of a server that runs in `environment`. Its monotonic clock stays the machine's."""

    file: Path

    @property
    def environment(self) -> dict[str, str]:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        if library is None:
            absent("libfaketime is not installed (the Debian package of that name)")
        return {
            "LD_PRELOAD": str(library),
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
        }

    def jump(self, to_s: int) -> None:
        """So far from the true time."""
        aside = self.file.with_suffix(".new")
        aside.write_text(f"{to_s:+d}\n")
        aside.replace(self.file)


@dataclass
class Asked:
    answers: list[bool] = field(default_factory=list)
    """Whether each was right."""
    stop: threading.Event = field(default_factory=threading.Event)

    def more(self) -> None:
        enough = len(self.answers) + 50
        until(lambda: len(self.answers) >= enough)


@contextmanager
def asking(server: Server, made: Made) -> Iterator[Asked]:
    """Over REST and gRPC without a pause, until the block ends; what failed is raised then."""
    asked = Asked()

    def rest() -> None:
        with httpx.Client(headers=made.headers, timeout=30) as client:
            while not asked.stop.is_set():
                answer = client.post(server.url("/v2/models/linear/infer"), json=BODY).raise_for_status().json()
                asked.answers.append(answer["outputs"][0]["data"] == TRUTH[0])

    def grpc() -> None:
        tensor = triton_grpc.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array(X, np.float32))
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            while not asked.stop.is_set():
                answer = client.infer("linear", [tensor], headers=made.headers, client_timeout=30)
                asked.answers.append(answer.as_numpy("y").tolist() == TRUTH)

    with ThreadPoolExecutor(2) as clients:
        running = [clients.submit(each) for each in (rest, grpc)]
        try:
            yield asked
        finally:
            asked.stop.set()
    for each in running:
        each.result()


def token(key: ec.EllipticCurvePrivateKey) -> Made:
    now = int(time.time())
    claims = {"iss": "us", "aud": "seatrial", "sub": "alice", "iat": now, "exp": now + HOUR_S // 2}
    return Made("", jwt.encode(claims, key, "ES256"))


@pytest.fixture
def key(tmp_path: Path) -> ec.EllipticCurvePrivateKey:
    made = ec.generate_private_key(ec.SECP256R1())
    public = jwt.algorithms.ECAlgorithm.to_jwk(made.public_key(), as_dict=True)
    (tmp_path / "jwks.json").write_bytes(msgspec.json.encode({"keys": [public]}))
    return made


@pytest.mark.slow
def test_a_clock_that_jumps_fails_no_request_and_is_in_no_latency(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    file, clock = tmp_path / "access.json", Clock(tmp_path / "clock")
    forever, passing = grant(file, "forever", acts=("infer", "read")), grant(file, "passing", lasts_s=HOUR_S / 2)
    frugal = grant(file, "frugal", requests_per_s=0.01)
    grant(file, "token:alice")
    clock.jump(0)
    environment = clock.environment | {
        "SEATRIAL_SERVING__ACCESS__FILE": str(file),
        "SEATRIAL_SERVING__ACCESS__QUOTA__BURST_S": "200",
        "SEATRIAL_SERVING__ACCESS__TOKENS__ISSUER": "us",
        "SEATRIAL_SERVING__ACCESS__TOKENS__AUDIENCE": "seatrial",
        "SEATRIAL_SERVING__ACCESS__TOKENS__KEYS": str(tmp_path / "jwks.json"),
        "SEATRIAL_SERVING__ACCESS__TOKENS__ALGORITHMS": '["ES256"]',
    }
    alice = token(key)
    bundle = LinearBundle().write(tmp_path)
    with serving(bundle.path, place=tmp_path / "server", environment=environment) as server:

        def status(made: Made) -> int:
            return httpx.post(server.url("/v2/models/linear/infer"), json=BODY, headers=made.headers).status_code

        def shifted_s() -> float:
            told = httpx.get(server.url("/v2/models/linear/stats"), headers=forever.headers).json()
            return float(told["model_stats"][0]["last_inference"]) / 1000 - time.time()

        shifted_s()  # what it imports, it imports now: a thread waits long for its turn where the clock is not the kernel's
        with asking(server, forever) as asked:
            asked.more()
            assert [status(each) for each in (passing, alice)] == [200, 200]
            assert [status(frugal) for _ in range(3)] == [200, 200, 429]

            clock.jump(HOUR_S)
            until(lambda: abs(shifted_s() - HOUR_S) < 60)
            asked.more()
            assert [status(each) for each in (passing, alice)] == [401, 401], "both have expired by now"
            assert status(frugal) == 429, "nobody earned more in that hour"
            server.engines()[0].kill()
            until(lambda: server.total("seatrial_engine_deaths_total") == 1)
            until(lambda: server.total("seatrial_engines") == 2)

            clock.jump(-2 * HOUR_S)
            until(lambda: abs(shifted_s() + 2 * HOUR_S) < 60)
            asked.more()
            assert status(passing) == 200
            server.process.send_signal(signal.SIGHUP)
            until(lambda: server.total("seatrial_swaps_total", outcome="done") == 1)
            asked.more()

            clock.jump(0)
            until(lambda: abs(shifted_s()) < 60)
            asked.more()
            assert [status(each) for each in (passing, alice)] == [200, 200]
        assert all(asked.answers)
        for part in ("request", "queue", "compute"):
            name = f"seatrial_{part}_duration_seconds"
            assert 0 <= server.total(f"{name}_sum") < HOUR_S / 2
            within = server.total(f"{name}_bucket", le="10.0")
            assert within == server.total(f"{name}_count") > 200
