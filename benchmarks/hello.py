"""The limit of any Python server over HTTP: read the body, answer with a fixed one. `python -m benchmarks.hello`.

uvicorn with uvloop and httptools, as our own server has them, and nothing behind it.
"""

import asyncio
import json
from typing import Any

import uvicorn
import uvloop

METADATA = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]}).encode()
ANSWER = bytes(200)
HEADERS = [(b"content-type", b"application/octet-stream")]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        continue
    body = ANSWER if scope["method"] == "POST" else METADATA
    headers = [*HEADERS, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def main() -> None:
    server = uvicorn.Server(
        uvicorn.Config(hello, port=0, lifespan="off", access_log=False, log_level="warning", http="httptools")
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    print(json.dumps({"event": "ready", "http": f"127.0.0.1:{port}"}), flush=True)
    await serving


if __name__ == "__main__":
    uvloop.run(main())
