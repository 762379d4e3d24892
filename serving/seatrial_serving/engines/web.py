"""ONNX Runtime Web in a headless browser: what export verifies is the page's own module, with the runtime that the bundle brings.

It is here for the proof and for golden requests. A server could run it, several times slower than `onnxruntime` runs the same
file. The browser is told what to do over the pipe of the DevTools protocol, and fetches the bundle, nothing else of this
machine, over loopback, below an address that nobody can guess.
"""

import base64
import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler
from itertools import count
from pathlib import Path
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import Any

import numpy as np

from seatrial.bundle import MAIN, Bundle
from seatrial.engines import program
from seatrial.errors import BundleCorrupt, EngineFailed
from seatrial.tensors import Array, DataType
from seatrial_serving.engines.signature import check_datatypes

NAME = "onnxruntime-web"
FLAGS = (
    "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--remote-debugging-pipe",
)  # fmt: skip
SHORT = "/tmp"
"""Where Chromium keeps a socket, the path of which must not be longer than 107 letters, or it ends."""
LAST_WORDS_S, LOOK_EVERY_S = 5.0, 0.02
"""The processes of a browser that has ended may outlive it a little, and write to its profile."""
NOT_TAKEN = (DataType.BYTES, DataType.FP16, DataType.BF16)

OPEN = """(async () => {
  const { open, arrayOf } = await import(%s);
  const model = await open();
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const text = (bytes) => {
    let letters = "";
    for (let at = 0; at < bytes.length; at += 32768)
      letters += String.fromCharCode.apply(null, bytes.subarray(at, at + 32768));
    return btoa(letters);
  };
  globalThis.ask = async (given) => {
    const inputs = {};
    for (const spec of model.inputs) {
      const [, kind] = arrayOf(spec);
      const { shape, data } = given[spec.name];
      inputs[spec.name] = { shape, data: new kind(bytes(data).buffer) };
    }
    const outputs = Object.entries(await model.predict(inputs));
    return Object.fromEntries(outputs.map(([name, { shape, data }]) =>
      [name, { shape, data: text(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)) }]));
  };
})()"""
"""Arrays go in and out as base64, which costs less than the runtime's own overhead and keeps every bit."""


class OnnxRuntimeWeb:
    on_cpu = True

    def __init__(self, bundle: Bundle) -> None:
        """Raises `BundleCorrupt`, and `EngineUnavailable` for a signature with tensors that the page's module does not take."""
        self.signature = bundle.manifest.signature
        self.graphs = {MAIN: self.signature}
        check_datatypes(self.signature, NAME, not_taken=NOT_TAKEN)
        self._files = _Files(bundle.path)
        self._browser = _Browser()
        try:
            self._browser.show(f"{self._files.url}/bundle.json")  # any page of that origin
            self._browser.run(OPEN % json.dumps(f"{self._files.url}/model.mjs"))
        except _Thrown as error:
            self.close()
            raise BundleCorrupt(f"{NAME} cannot load {bundle.path}: {error}") from error
        except BaseException:
            self.close()
            raise

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:  # noqa: ARG002 - it has one
        given = {
            spec.name: {
                "shape": inputs[spec.name].shape,
                "data": base64.b64encode(np.ascontiguousarray(inputs[spec.name]).data).decode(),
            }
            for spec in self.signature.inputs
        }
        try:
            found = self._browser.run(f"ask({json.dumps(given)})")
        except _Thrown as error:
            raise EngineFailed(f"{NAME} refused the batch: {error}") from error
        return {
            spec.name: np.frombuffer(bytearray(base64.b64decode(answer["data"])), spec.datatype.numpy).reshape(
                answer["shape"]
            )
            for spec in self.signature.outputs
            for answer in [found[spec.name]]
        }

    def close(self) -> None:
        self._browser.close()
        self._files.close()


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> OnnxRuntimeWeb:  # noqa: ARG001 - a page has one thread
    return OnnxRuntimeWeb(bundle)


class _Thrown(Exception):
    """What the page's script threw, in its words."""


class _Browser:
    """A process with one page. Whoever kills us closes the pipe, and with it the browser."""

    def __init__(self) -> None:
        """Raises `EngineFailed` where it does not start."""
        found = program(NAME)
        assert found is not None, "opened without having looked for a browser: this is a bug"
        self._profile = tempfile.TemporaryDirectory(prefix="seatrial-browser-", ignore_cleanup_errors=True)
        self._numbers = count(1)
        self._session: dict[str, str] = {}
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium has none for root
        self._process = subprocess.Popen(
            # the protocol is spoken over the descriptors 3 and 4, and only a shell puts them there
            ["sh", "-c", f'exec "$0" "$@" 3</dev/fd/{theirs_in} 4>/dev/fd/{theirs_out}', found, *FLAGS, *sandbox,
             f"--user-data-dir={self._profile.name}"],
            env=os.environ | {"TMPDIR": SHORT}, pass_fds=[theirs_in, theirs_out],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._orders, self._answers = open(ours_out, "wb"), open(ours_in, "rb")  # noqa: PTH123, SIM115

    def show(self, url: str) -> None:
        target = self._order("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self._order("Page.enable")
        self._order("Page.navigate", url=url)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """What the promise that `script` is comes to. Raises `_Thrown`, and `EngineFailed` where the browser has ended."""
        found = self._order("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if thrown := found.get("exceptionDetails"):
            said = thrown.get("exception", {}).get("description") or thrown["text"]
            raise _Thrown(said.splitlines()[0])
        return found["result"].get("value")

    def close(self) -> None:
        self._orders.close()
        self._answers.close()
        self._process.terminate()
        self._process.wait()
        until = time.monotonic() + LAST_WORDS_S
        self._profile.cleanup()
        while Path(self._profile.name).exists() and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
            self._profile.cleanup()

    def _order(self, method: str, **parameters: object) -> Any:
        number = next(self._numbers)
        order = {"id": number, "method": method, "params": parameters, **self._session}
        try:
            self._orders.write(json.dumps(order).encode() + b"\0")
            self._orders.flush()
        except BrokenPipeError as error:
            raise self._ended() from error
        while (said := self._next()).get("id") != number:
            pass  # events
        if "error" in said:
            raise EngineFailed(f"the browser refused {method}: {said['error']['message']}")
        return said["result"]

    def _next(self) -> Any:
        text = bytearray()
        while not text.endswith(b"\0"):
            if not (part := self._answers.peek()):
                raise self._ended()
            text += self._answers.read(part.find(b"\0") + 1 or len(part))
        return json.loads(text[:-1])

    def _ended(self) -> EngineFailed:
        return EngineFailed(f"the browser ended with exit code {self._process.wait()}")


class _Files:
    """A folder, over loopback, for as long as the engine lives."""

    def __init__(self, folder: Path) -> None:
        secret = secrets.token_urlsafe(16)
        handler = partial(_Handler, secret=secret, directory=str(folder))
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{secret}"
        self._thread = Thread(target=self._server.serve_forever, name=NAME, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm"}


class _Server(ThreadingTCPServer):
    daemon_threads = True  # the browser, which has ended, may have left connections without a request


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, secret: str, directory: str) -> None:
        self._secret = secret
        super().__init__(*arguments, directory=directory)

    def translate_path(self, path: str) -> str:
        """Nothing lies outside of the secret."""
        first, _, rest = path.lstrip("/").partition("/")
        known = secrets.compare_digest(first.encode(), self._secret.encode())
        return super().translate_path(f"/{rest}") if known else ""

    def guess_type(self, path: Any) -> str:
        """The same on every machine, whatever it says of itself: a browser takes no module and no machine code otherwise."""
        return TYPES.get(Path(path).suffix) or super().guess_type(path)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""
