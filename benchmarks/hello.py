"""The limit of any Python server: read the body, answer with a fixed one, over HTTP and over gRPC.

`python -m benchmarks.hello PROCESSES`: uvicorn with uvloop and httptools, and grpc.aio, in so many processes that share their
ports, and nothing behind them.
"""

import asyncio
import json
import os
import socket
import sys
from typing import Any

import grpc
import uvicorn
import uvloop

from seatrial_serving.doors.http import bind
from seatrial_serving.open_inference import SERVICE

ANSWER = bytes(200)
HEADERS = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(ANSWER))]


async def hello(_: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        continue
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


async def grpc_hello(_: bytes, __: Any) -> bytes:
    return ANSWER


async def serve(http: socket.socket, grpc_port: int, *, ready: int) -> None:
    """Until SIGTERM or SIGINT. Writes a byte to `ready` when connections are taken."""
    server = uvicorn.Server(
        uvicorn.Config(hello, lifespan="off", access_log=False, log_level="warning", http="httptools")
    )
    grpc_server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    method: Any = grpc.unary_unary_rpc_method_handler(grpc_hello)
    grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": method}),))
    grpc_server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await grpc_server.start()
    serving = asyncio.create_task(server.serve(sockets=[http]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    os.write(ready, b"+")
    await serving
    await grpc_server.stop(1)


def main(processes: int) -> None:
    http, grpc_taken = bind("127.0.0.1", 0, shared=True), bind("127.0.0.1", 0, shared=True)
    (_, http_port), (_, grpc_port) = http.getsockname(), grpc_taken.getsockname()
    ready, is_ready = os.pipe()
    for _ in range(processes):
        if not os.fork():
            uvloop.run(serve(bind("127.0.0.1", http_port, shared=True), grpc_port, ready=is_ready))
            return
    for _ in range(processes):
        os.read(ready, 1)
    print(
        json.dumps({"event": "ready", "http": f"127.0.0.1:{http_port}", "grpc": f"127.0.0.1:{grpc_port}"}), flush=True
    )
    os.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
