"""Texts of CLINC150 as they come, put to MiniLM-L6 by 32 callers, through the same server in four ways, and the raw engine.

- by tokens: each text as token ids of its own length; the server chooses who shares a batch;
- as texts: the same texts through `/v1/embeddings`, their length guessed before they are tokens;
- first come: as by tokens, but whoever comes next is in the next batch, padded to its own longest;
- all padded: every text was padded to the longest of the set before it was sent.

The raw engine is called by one process a core, in batches of texts that are equally long, so that nothing is padded. What is
compared are tokens a second that texts really have.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import msgspec
import numpy as np

from benchmarks.bench import PORTS, Bench, case
from benchmarks.intervals import Promise, promises
from benchmarks.models import graph
from benchmarks.raw import CASE, WARM_UP
from benchmarks.rounds import Lost, Rounds, Trial, p50_ms, p99_ms, play
from benchmarks.started import Revived, started
from benchmarks.tables import table
from seatrial.bundle import Draft, EngineSpec, Normalize, Pool, Tokenize, write_bundle
from seatrial.machine import cores
from seatrial.protocol import InferRequest, Tensor, encode_request
from seatrial.settings import load_settings
from seatrial.tensors import Array, DataType, Padding
from seatrial_monitoring.series import PADDING, TOKENS
from seatrial_serving.batching import Queue, Waiting
from seatrial_serving.bench import OK, Result
from seatrial_serving.engines.onnxruntime import OnnxRuntime, read_signature

CALLERS = 32
SAMPLE = 2000
"""Texts that are asked, again from the first one when they run out."""
RAW_ROWS = (4, 8, 16, 32)
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
OURS, TEXTS, FIRST_COME, ALL_PADDED = "by tokens", "as texts", "first come", "all padded"
PROMISED = {ALL_PADDED: 1.5, FIRST_COME: 1.15}
OF_RAW = 0.9
RAW = "raw"
CHOICE = "_with_its_like"
"""How a queue chooses who shares a batch with its first."""
MODEL = "minilm"
INFER, EMBEDDINGS = f"/v2/models/{MODEL}/infer", "/v1/embeddings"
LOAD = case(CALLERS)
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
  io.write(string.format('\\n{{"requests": %d, "us": %d, "failed": %d, "p50": %g, "p90": %g, "p99": %g, "max": %g}}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
"""


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


def write_minilm(bench: Bench, tokenizer: Path, store: Path) -> Path:
    """A bundle of MiniLM that says how its inputs are padded, and how texts become embeddings."""
    bundle = bench.models.minilm
    made = bundle.manifest
    [axis] = [axis for axis in made.signature.dynamic_axes if axis.at.get(IDS) == 1]
    zeros: dict[str, int | float] = {spec.name: 0 for spec in made.signature.inputs}
    draft = Draft(
        model=made.model,
        variant=made.variant,
        signature=msgspec.structs.replace(made.signature, padding=Padding(axis=axis.name, values=zeros)),
        engine=EngineSpec(name="onnxruntime"),
        graphs={"main": "model.onnx"},
        files={"model.onnx": graph(bundle), "tokenizer.json": tokenizer},
        golden=bundle.golden(),
        source_bounds=made.tolerance.source,
        rerun_bounds=made.tolerance.rerun,
        preprocessing=(Tokenize(file="tokenizer.json", ids=IDS, mask=MASK, max_tokens=256),),
        postprocessing=(Pool(output=made.signature.outputs[0].name, method="mean"), Normalize()),
    )
    return write_bundle(draft, store).path


def measure(bench: Bench) -> str:
    tokenizer = bench.models.minilm_tokenizer
    onnx = graph(bench.models.minilm)
    texts = read_texts(load_settings().data_folder / "clinc150.json", tokenizer)
    shares: list[float] = []
    with tempfile.TemporaryDirectory(prefix="seatrial-bench-") as place:
        bundle = str(write_minilm(bench, tokenizer, Path(place)))
        with (
            Revived(partial(started, "seatrial", "serve", bundle, *PORTS)) as server,
            Revived(partial(started, "benchmarks.sequences", FIRST_COME, bundle, *PORTS)) as first_come,
        ):
            tokens, padded = as_tokens(texts), as_tokens(texts, padded_to=texts.longest)
            asked = {
                OURS: partial(by_tokens, server, tokens, texts, bench.seconds, shares),
                TEXTS: partial(ask, server, EMBEDDINGS, as_texts(texts), texts, bench.seconds),
                FIRST_COME: partial(ask, first_come, INFER, tokens, texts, bench.seconds),
                ALL_PADDED: partial(ask, server, INFER, padded, texts, bench.seconds),
            }
            trials = [Trial(of=name, case=LOAD, take=take) for name, take in asked.items()]
            trials += [
                Trial(of=_raw_name(rows), case=CASE, take=partial(raw, onnx, texts, rows, bench.seconds))
                for rows in RAW_ROWS
            ]
            rounds = play(trials, rounds=bench.rounds, progress=bench.progress, title="sequences")
    about = (
        f"{SAMPLE:,} texts of {texts.lengths.mean():.1f} tokens on average; the longest of the set has {texts.longest}. "
        f"By tokens, {median(shares or [math.nan]):.1%} of what the engine computes is padding."
    )
    return "\n\n".join(filter(None, (about, _promises(rounds), _figures(rounds), rounds.losses())))


def _raw_name(rows: int) -> str:
    return f"raw, batch {rows}"


def _promises(rounds: Rounds) -> str:
    best = max(map(_raw_name, RAW_ROWS), key=lambda name: rounds.median(name, CASE))
    made = [
        Promise(f">= {least} of {name}", rounds.ratio(OURS, name, LOAD), at_least=least)
        for name, least in PROMISED.items()
    ]
    of_raw = rounds.ratio(OURS, best, LOAD, to_case=CASE)
    return promises([*made, Promise(f">= {OF_RAW} of the best raw throughput ({best})", of_raw, at_least=OF_RAW)])


def _figures(rounds: Rounds) -> str:
    rows = [
        [name, f"{rounds.median(name, LOAD):,.0f}", f"{rounds.median(name, LOAD, p50_ms):.0f} / {_p99(rounds, name)}"]
        for name in (OURS, TEXTS, FIRST_COME, ALL_PADDED)
    ]
    rows += [[name, f"{rounds.median(name, CASE):,.0f}", ""] for name in map(_raw_name, RAW_ROWS)]
    return table(["", "tokens/s", f"p50 / p99 ms, {LOAD}"], rows)


def _p99(rounds: Rounds, name: str) -> str:
    return f"{rounds.median(name, LOAD, p99_ms):.0f}"


Bodies = Sequence[tuple[bytes, int]]
"""Each with the length of its JSON part, 0 where it is nothing but JSON."""


def as_tokens(texts: Texts, *, padded_to: int = 0) -> Bodies:
    return [encode_request(_request(ids, max(padded_to, len(ids)))) for ids in texts.ids]


def as_texts(texts: Texts) -> Bodies:
    asked = ({"model": MODEL, "input": text, "encoding_format": "base64"} for text in texts.said)
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


def by_tokens(server: Revived, bodies: Bodies, texts: Texts, seconds: int, shares: list[float]) -> Result:
    """As `ask`, noting how much of what the engine computed meanwhile was padding."""
    before = _computed(server)
    result = ask(server, INFER, bodies, texts, seconds)
    real, added = (after - earlier for after, earlier in zip(_computed(server), before, strict=True))
    shares.append(added / (real + added))
    return result


def _computed(server: Revived) -> tuple[float, float]:
    """Tokens that a server has been asked, and those that it added."""
    text = httpx.get(f"http://{server.address('metrics')}/metrics").text
    real, added = (
        sum(map(float, re.findall(rf"^{name}_total{{.*}} (.*)$", text, re.MULTILINE)))
        for name in (TOKENS.name, PADDING.name)
    )
    return real, added


def ask(server: Revived, path: str, bodies: Bodies, texts: Texts, seconds: int) -> Result:
    """With `wrk`; `per_second` counts the texts' own tokens. Raises `Lost` where the server does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bodies").write_bytes(b"".join(body for body, _ in bodies))
        (Path(folder) / "index").write_text("".join(f"{len(body)} {head}\n" for body, head in bodies))
        script = Path(folder) / "script.lua"
        script.write_text(SCRIPT.format(folder=folder, path=path))
        load = ("-t1", f"-c{CALLERS}", f"-d{seconds}s", "--timeout", "20s", "-s", str(script))
        command = ["wrk", *load, f"http://{server.address('http')}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Lost(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    seconds_ = found["us"] / 1e6
    return Result(
        requests=found["requests"],
        seconds=seconds_,
        outcomes={OK: found["requests"] - found["failed"], "failed": found["failed"]},
        per_second=texts.tokens(found["requests"]) / seconds_,
        p50_ms=found["p50"] / 1000,
        p90_ms=found["p90"] / 1000,
        p99_ms=found["p99"] / 1000,
        max_ms=found["max"] / 1000,
    )


def raw(onnx: Path, texts: Texts, rows: int, seconds: int) -> Result:
    """One process a core, which does nothing else; `per_second` counts tokens, a request is a call."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts.ids, file)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.sequences", RAW, str(onnx), file.name, str(rows), str(seconds)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(cores())]
        said = [json.loads(process.communicate()[0]) for process in processes]
    calls = sum(number for number, _ in said)
    per_second = sum(found for _, found in said)
    nan = math.nan
    return Result(
        requests=calls, seconds=seconds, outcomes={OK: calls}, per_second=per_second,
        p50_ms=nan, p90_ms=nan, p99_ms=nan, max_ms=nan,
    )  # fmt: skip


def raw_calls(onnx: Path, ids: Sequence[Sequence[int]], *, rows: int, seconds: float) -> tuple[int, float]:
    """How many calls there were, and the tokens a second."""
    engine = OnnxRuntime({"main": onnx}, signature=read_signature(onnx), options={}, threads=1)
    batches = list(_equally_long(ids, rows))
    for batch in batches[:WARM_UP]:
        engine.predict(batch)
    calls, tokens, began = 0, 0, time.perf_counter()
    while (took_s := time.perf_counter() - began) < seconds:
        batch = batches[calls % len(batches)]
        engine.predict(batch)
        tokens += batch[IDS].size
        calls += 1
    return calls, tokens / took_s


def _equally_long(ids: Sequence[Sequence[int]], rows: int) -> Iterator[dict[str, Array]]:
    """Whole batches in an order that does not follow their length, so that any stretch of them is like the rest."""
    batches = []
    for length in sorted({len(each) for each in ids}):
        alike = [each for each in ids if len(each) == length]
        batches += [inputs(alike[start : start + rows], length) for start in range(0, len(alike), rows)]
    for number in np.random.default_rng(0).permutation(len(batches)):
        yield batches[number]


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


if __name__ == "__main__":
    match sys.argv[1:]:
        case [what, onnx, ids, rows, seconds] if what == RAW:
            asked = json.loads(Path(ids).read_bytes())
            print(json.dumps(raw_calls(Path(onnx), asked, rows=int(rows), seconds=float(seconds))))
        case [what, *arguments] if what == FIRST_COME:
            serve_first_come(arguments)
