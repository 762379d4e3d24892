"""The limit of any Python server: read the body, answer with a fixed one, over HTTP and over gRPC. `python -m benchmarks.hello`.

uvicorn with uvloop and httptools, and grpc.aio, as our own server has them, and nothing behind them.
"""

import asyncio
import json
from typing import Any

import grpc
import uvicorn
import uvloop

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


async def main() -> None:
    server = uvicorn.Server(
        uvicorn.Config(hello, port=0, lifespan="off", access_log=False, log_level="warning", http="httptools")
    )
    grpc_server = grpc.aio.server()
    method: Any = grpc.unary_unary_rpc_method_handler(grpc_hello)
    grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": method}),))
    grpc_port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    print(json.dumps({"event": "ready", "http": f"127.0.0.1:{port}", "grpc": f"127.0.0.1:{grpc_port}"}), flush=True)
    await serving
    await grpc_server.stop(1)


if __name__ == "__main__":
    uvloop.run(main())
