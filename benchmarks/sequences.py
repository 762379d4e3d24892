"""Texts of CLINC150 as they come, put to MiniLM-L6: `python -m benchmarks.sequences MINILM.onnx TOKENIZER.json`.

Four ways through the same server, with all defaults and 32 callers, and beside them the raw engine:
- by tokens: each text as token ids of its own length; the server chooses who shares a batch;
- as texts: the same texts through `/v1/embeddings`, their length guessed before they are tokens;
- first come: as by tokens, but whoever comes next is in the next batch, padded to its own longest;
- all padded: every text was padded to the longest of the set before it was sent.
The raw engine is called by one process a core with batches in which all texts are equally long, so that nothing is padded.
What is compared are tokens a second that texts really have; ratios are taken round by round.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import click
import httpx
import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.started import started
from benchmarks.tables import table
from seatrial.bundle import (
    Bound,
    Draft,
    EngineSpec,
    ModelName,
    Normalize,
    Pool,
    Tokenize,
    VariantName,
    write_bundle,
)
from seatrial.machine import cores
from seatrial.protocol import InferRequest, Tensor, encode_request
from seatrial.settings import load_settings
from seatrial.tensors import Array, DataType, Padding
from seatrial_serving.batching import Queue, Waiting
from seatrial_serving.engines.onnxruntime import OnnxRuntime, read_signature

CALLERS = 32
SAMPLE = 2000
"""Texts that are asked, again from the first one when they run out."""
RAW_ROWS = (4, 8, 16, 32)
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json")
OURS, TEXTS, FIRST_COME, ALL_PADDED = "by tokens", "as texts, /v1/embeddings", "first come", "all padded"
PROMISED = {ALL_PADDED: 1.5, FIRST_COME: 1.15}
OF_RAW = 0.9
CHOICE = "_with_its_like"
"""How a queue chooses who shares a batch with its first."""
SCRIPT = """
local index, requests, next = {{}}, {{}}, 0
for line in io.lines("{folder}/index") do
  local size, head = line:match("(%d+) (%d+)")
  index[#index + 1] = {{tonumber(size), head}}
end
function init()
  local bodies = io.open("{folder}/bodies", "rb")
  for i, entry in ipairs(index) do
    local headers = {{["Content-Type"] = "application/json"}}
    if entry[2] ~= "0" then headers = {{["Inference-Header-Content-Length"] = entry[2]}} end
    requests[i] = wrk.format("POST", "{path}", headers, bodies:read(entry[1]))
  end
end
function request()
  next = next % #requests + 1
  return requests[next]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{{"requests": %d, "us": %d, "failed": %d, "p50": %g, "p99": %g}}\\n', summary.requests,
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    tokens_per_second: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0


@dataclass(frozen=True)
class Texts:
    """The texts that are asked, each with its token ids; `longest` is of the whole set."""

    said: Sequence[str]
    ids: Sequence[Sequence[int]]
    longest: int

    @cached_property
    def lengths(self) -> Array:
        return np.array([len(ids) for ids in self.ids])

    def tokens(self, requests: int) -> int:
        """How many tokens the first so many requests have."""
        rounds, rest = divmod(requests, len(self.ids))
        return int(rounds * self.lengths.sum() + self.lengths[:rest].sum())


def read_texts(clinc150: Path, tokenizer: Path) -> Texts:
    from tokenizers import Tokenizer

    opened: Any = Tokenizer.from_file(str(tokenizer))
    opened.no_padding()
    opened.no_truncation()
    parts = json.loads(clinc150.read_bytes())
    said = [text for part in ("train", "val", "test") for text, _ in parts[part]]
    ids = [encoding.ids for encoding in opened.encode_batch(said)]
    chosen = np.random.default_rng(0).choice(len(said), SAMPLE, replace=False)
    return Texts([said[i] for i in chosen], [ids[i] for i in chosen], max(map(len, ids)))


def write_minilm(onnx: Path, tokenizer: Path, store: Path) -> Path:
    """A bundle of MiniLM that says how its inputs are padded, and how texts become embeddings."""
    read = read_signature(onnx)
    [axis] = [axis for axis in read.dynamic_axes if axis.at.get(IDS) == 1]
    zeros: dict[str, int | float] = {spec.name: 0 for spec in read.inputs}
    bundle = write_bundle(
        Draft(
            model=ModelName(name="minilm", version="1"),
            variant=VariantName(name="onnx-cpu-fp32", target="onnx-cpu", precision="fp32"),
            signature=type(read)(
                inputs=read.inputs,
                outputs=read.outputs,
                dynamic_axes=read.dynamic_axes,
                padding=Padding(axis=axis.name, values=zeros),
            ),
            engine=EngineSpec(name="onnxruntime"),
            graphs={"main": "model.onnx"},
            files={"model.onnx": onnx, "tokenizer.json": tokenizer},
            golden=(),
            source_bounds={spec.name: Bound(absolute=1e-4) for spec in read.outputs},
            rerun_bounds={spec.name: Bound(absolute=1e-4) for spec in read.outputs},
            preprocessing=(Tokenize(file="tokenizer.json", ids=IDS, mask=MASK, max_tokens=256),),
            postprocessing=(Pool(output=read.outputs[0].name, method="mean"), Normalize()),
        ),
        store,
    )
    return bundle.path


Bodies = Sequence[tuple[bytes, int]]
"""Each with the length of its JSON part, 0 where it is nothing but JSON."""


def as_tokens(texts: Texts, *, padded_to: int = 0) -> Bodies:
    return [encode_request(_request(ids, max(padded_to, len(ids)))) for ids in texts.ids]


def as_texts(texts: Texts) -> Bodies:
    asked = ({"model": "minilm", "input": text, "encoding_format": "base64"} for text in texts.said)
    return [(json.dumps(each).encode(), 0) for each in asked]


def _request(ids: Sequence[int], width: int) -> InferRequest:
    arrays = inputs([ids], width)
    tensors = (Tensor(name, DataType.INT64, array) for name, array in arrays.items())
    return InferRequest(tuple(tensors), parameters={"binary_data_output": True})


def inputs(rows: Sequence[Sequence[int]], width: int) -> dict[str, Array]:
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return {IDS: ids, MASK: mask, TYPES: np.zeros_like(ids)}


def ask(address: str, path: str, bodies: Bodies, texts: Texts, *, seconds: int) -> Found:
    """With `wrk`. Raises `SystemExit` where a request fails."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bodies").write_bytes(b"".join(body for body, _ in bodies))
        (Path(folder) / "index").write_text("".join(f"{len(body)} {head}\n" for body, head in bodies))
        script = Path(folder) / "script.lua"
        script.write_text(SCRIPT.format(folder=folder, path=path))
        command = ["wrk", "-t1", f"-c{CALLERS}", f"-d{seconds}s", "--timeout", "20s", "-s", str(script)]
        said = subprocess.run([*command, f"http://{address}"], capture_output=True, text=True, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    if found["failed"]:
        raise SystemExit(f"{found['failed']} of {found['requests']} requests to {path} failed:\n{said}")
    return Found(
        tokens_per_second=texts.tokens(found["requests"]) / (found["us"] / 1e6),
        p50_ms=found["p50"] / 1000,
        p99_ms=found["p99"] / 1000,
    )


def raw(onnx: Path, texts: Texts, *, rows: int, seconds: float) -> Found:
    """One process a core, which does nothing else."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts.ids, file)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.sequences", "raw", str(onnx), file.name, str(rows), str(seconds)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(cores())]
        return Found(tokens_per_second=sum(float(process.communicate()[0]) for process in processes))


def raw_tokens_per_second(onnx: Path, ids: Sequence[Sequence[int]], *, rows: int, seconds: float) -> float:
    engine = OnnxRuntime({"main": onnx}, signature=read_signature(onnx), options={}, threads=1)
    batches = list(_equally_long(ids, rows))
    for batch in batches[:: max(1, len(batches) // 20)]:
        engine.predict(batch)
    tokens, number, began = 0, 0, time.perf_counter()
    while (took_s := time.perf_counter() - began) < seconds:
        batch = batches[number % len(batches)]
        engine.predict(batch)
        tokens += batch[IDS].size
        number += 1
    return tokens / took_s


def _equally_long(ids: Sequence[Sequence[int]], rows: int) -> Iterator[dict[str, Array]]:
    """Whole batches in an order that does not follow their length, so that any stretch of them is like the rest."""
    batches = []
    for length in sorted({len(each) for each in ids}):
        alike = [each for each in ids if len(each) == length]
        batches += [inputs(alike[start : start + rows], length) for start in range(0, len(alike), rows)]
    for number in np.random.default_rng(0).permutation(len(batches)):
        yield batches[number]


def measure(onnx: Path, tokenizer: Path, *, rounds: int, seconds: int, progress: Progress) -> str:
    """The section of `benchmarks/README.md`."""
    texts = read_texts(load_settings().data_folder / "clinc150.json", tokenizer)
    found: dict[str, list[Found]] = {}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seatrial-bench-")))
        bundle = str(write_minilm(onnx, tokenizer, place))
        log = "--no-request-log"
        ours = stack.enter_context(started("seatrial", "serve", bundle, log, *PORTS)).addresses
        first_come = stack.enter_context(started("benchmarks.sequences", FIRST_COME, bundle, log, *PORTS)).addresses
        infer, embeddings = "/v2/models/minilm/infer", "/v1/embeddings"
        tokens = as_tokens(texts)
        contenders = [
            (OURS, ours["http"], infer, tokens),
            (TEXTS, ours["http"], embeddings, as_texts(texts)),
            (FIRST_COME, first_come["http"], infer, tokens),
            (ALL_PADDED, ours["http"], infer, as_tokens(texts, padded_to=texts.longest)),
        ]
        wasted: list[float] = []
        task = progress.add_task("sequences", total=rounds * (len(contenders) + len(RAW_ROWS)))
        for number in range(rounds):
            for name, address, path, bodies in contenders[number % 4 :] + contenders[: number % 4]:
                before = _padding(ours["metrics"])
                found.setdefault(name, []).append(ask(address, path, bodies, texts, seconds=seconds))
                if name == OURS:
                    real, added = (after - was for after, was in zip(_padding(ours["metrics"]), before, strict=True))
                    wasted.append(added / (real + added))
                progress.advance(task)
            for rows in RAW_ROWS:
                found.setdefault(_raw_name(rows), []).append(raw(onnx, texts, rows=rows, seconds=seconds))
                progress.advance(task)
    about = (
        f"{SAMPLE:,} texts, {texts.lengths.mean():.1f} tokens on average, the longest of the set has {texts.longest}. "
        f"Of the tokens that the engine computes by tokens, {median(wasted):.1%} are padding."
    )
    return "\n\n".join((about, _promises(found), _figures(found)))


def _raw_name(rows: int) -> str:
    return f"raw, batch {rows}"


def _padding(address: str) -> tuple[float, float]:
    """Tokens that a server has been asked, and those that it added."""
    text = httpx.get(f"http://{address}/metrics").text
    return _sum(text, "seatrial_tokens_total"), _sum(text, "seatrial_padding_tokens_total")


def _sum(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (.*)$", text, re.MULTILINE))


def _promises(found: dict[str, list[Found]]) -> str:
    best = max(map(_raw_name, RAW_ROWS), key=lambda name: _middle(found[name]))
    promised = [*PROMISED.items(), (best, OF_RAW)]
    rows = [[f">= {least} of {name}", _ratio(found[OURS], found[name])] for name, least in promised]
    return table([f"{OURS}, tokens/s", "found"], rows)


def _ratio(these: Sequence[Found], those: Sequence[Found]) -> str:
    """The median over the rounds, and the range that holds 90 % of the medians drawn from them."""
    pairs = zip(these, those, strict=True)
    ratios = np.array([this.tokens_per_second / that.tokens_per_second for this, that in pairs])
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (5, 95))
    return f"{np.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def _figures(found: dict[str, list[Found]]) -> str:
    rows = []
    for name, rounds in found.items():
        p50, p99 = median(each.p50_ms for each in rounds), median(each.p99_ms for each in rounds)
        rows.append([name, f"{_middle(rounds):,.0f}", f"{p50:.0f} / {p99:.0f}" if p50 else ""])
    return table(["", "tokens/s", f"p50 / p99 ms, c={CALLERS}"], rows)


def _middle(found: Sequence[Found]) -> float:
    return median(each.tokens_per_second for each in found)


def serve_first_come(arguments: Sequence[str]) -> None:
    """`seatrial serve` that chooses nobody: within the same bounds, whoever is next in line is in the batch."""
    from seatrial.cli import shell

    def with_the_next(
        self: Queue[Any, Any], first: Waiting[Any, Any], *, max_rows: int, now: float
    ) -> list[Waiting[Any, Any]]:
        self.expire(now)
        batch = [first]
        for waiting in self:
            rows = sum(each.rows for each in batch) + waiting.rows
            longest = max(waiting.length, *(each.length for each in batch))
            if waiting.kind != first.kind or waiting.alone or rows > max_rows or rows * longest > self.max_tokens:
                break
            batch.append(waiting)
        self._remove(batch)
        return batch

    setattr(Queue, CHOICE, with_the_next)
    shell(["serve", *arguments])


@click.command()
@click.argument("onnx", type=click.Path(path_type=Path, exists=True))
@click.argument("tokenizer", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=9, show_default=True)
@click.option("--seconds", default=4, show_default=True)
def main(onnx: Path, tokenizer: Path, *, rounds: int, seconds: int) -> None:
    """Measure ONNX, MiniLM-L6 without pooling, with its TOKENIZER."""
    with Progress(console=Console(stderr=True)) as progress:
        print(measure(onnx, tokenizer, rounds=rounds, seconds=seconds, progress=progress))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["raw", onnx, ids, rows, seconds]:
            asked = json.loads(Path(ids).read_bytes())
            print(raw_tokens_per_second(Path(onnx), asked, rows=int(rows), seconds=float(seconds)))
        case ["first come", *arguments]:
            serve_first_come(arguments)
        case _:
            main()
