"""Load from outside Python, so that the client takes little of the cores that it shares with the servers.

`wrk` asks over HTTP/1.1 and `h2load` over HTTP/2, which carries gRPC: the Debian packages wrk and nghttp2-client. Every
caller has a connection of its own, and one request in flight.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Lost
from seatrial.protocol import InferRequest, encode_request
from seatrial_serving.bench import OK, Result, as_grpc
from seatrial_serving.open_inference import SERVICE

SCRIPT = """
wrk.method = "POST"
wrk.body = io.open("{body}", "rb"):read("*a")
{headers}
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{{"requests": %d, "us": %d, "failed": %d, "p50": %g, "p90": %g, "p99": %g, "max": %g}}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
"""
INFER = f"/{SERVICE}/ModelInfer"
DATA = re.compile(r"traffic:.*\((\d+)\) data")
STATUSES = re.compile(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


def v2(model: str, request: InferRequest, *, binary: bool = True) -> Post:
    """The request over REST, its tensors as binary data or as JSON."""
    body, json_length = encode_request(request, binary=binary)
    path = f"/v2/models/{quote(model)}/infer"
    if not binary:
        return Post(path=path, body=body)
    return Post(path=path, body=body, headers={"Inference-Header-Content-Length": str(json_length)})


def over_rest(address: str, post: Post, *, callers: int, seconds: int) -> Result:
    """Ask with `wrk`. Raises `Lost` where the server does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        sent, script = Path(folder) / "body", Path(folder) / "script.lua"
        sent.write_bytes(post.body)
        lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in post.headers.items())
        script.write_text(SCRIPT.format(body=sent, headers=lines))
        load = ("-t1", f"-c{callers}", f"-d{seconds}s", "--timeout", "20s")
        said = _run("wrk", *load, "-s", str(script), f"http://{address}{post.path}")
    found = json.loads(said.splitlines()[-1])
    return Result(
        requests=found["requests"],
        seconds=found["us"] / 1e6,
        outcomes={OK: found["requests"] - found["failed"], "failed": found["failed"]},
        per_second=(found["requests"] - found["failed"]) / (found["us"] / 1e6),
        p50_ms=found["p50"] / 1000,
        p90_ms=found["p90"] / 1000,
        p99_ms=found["p99"] / 1000,
        max_ms=found["max"] / 1000,
    )


def over_grpc(address: str, model: str, request: InferRequest, *, callers: int, seconds: int) -> Result:
    """Ask with `h2load`. It sees no gRPC status; an answer counts as good if it is as long as one that was looked at.

    Raises `Lost` where the server does not answer.
    """
    message = as_grpc(request, model)
    sent, good = _frame(message), len(_frame(ask_once(address, message)))
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(sent)
        headers = ("-H", "content-type: application/grpc", "-H", "te: trailers")
        load = ("-t1", "-m1", f"-c{callers}", f"-D{seconds}", f"--log-file={log}", "-d", str(body))
        said = _run("h2load", *load, *headers, f"http://{address}{INFER}")
        lines: NDArray[np.int64] = np.loadtxt(log, np.int64, ndmin=2)
    if not len(lines):
        raise Lost(f"nothing was answered:\n{said}")
    took_ms = lines[:, 2] / 1000
    answered, received = int(_found(STATUSES, said)), int(_found(DATA, said))
    failed = abs(received - answered * good) // good
    p50, p90, p99 = (float(np.percentile(took_ms, q)) for q in (50, 90, 99))
    return Result(
        requests=answered,
        seconds=seconds,
        outcomes={OK: answered - failed, "of another length": failed},
        per_second=(answered - failed) / seconds,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        max_ms=float(took_ms.max()),
    )


def ask_once(address: str, message: bytes) -> bytes:
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(INFER, request_serializer=bytes, response_deserializer=bytes)
        try:
            answer: bytes = ask(message, timeout=60)
        except grpc.RpcError as error:
            raise Lost(f"gRPC: {error}") from error
    return answer


def _frame(message: bytes) -> bytes:
    """A message as gRPC sends it: uncompressed, with its length in front."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _run(tool: str, *arguments: str) -> str:
    if shutil.which(tool) is None:
        raise SystemExit(f"{tool} is not installed: apt-get install wrk nghttp2-client")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Lost(f"{tool} {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    if match is None:
        raise Lost(f"h2load said nothing like {pattern.pattern}:\n{text}")
    return match[1]
