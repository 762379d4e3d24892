"""The child that tries many forms of a static INT8 model, by Optuna: `python -P -m seatrial_export.study job.json`.

A form is how many activations lie beyond their ranges and how many layers stay in float. Two aims are weighed that can be known
on a busy machine: what it loses on some rows, and which part of the multiplications is left in float, as a measure of what it
costs. Nothing is timed here, and nothing is proved: what lies on the Pareto front is only worth being built.
"""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from seatrial.tensors import Array
from seatrial_export import child, quantize
from seatrial_export.samples import Inputs
from seatrial_export.sensitivity import noise

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from seatrial_export.calibrate import Histogram
    from seatrial_export.static import Calibrated

ROWS, LABELS = "rows.npz", "labels"
CUT_PPM = (1, 10_000)
"""Of a million activations, how many lie beyond the range: from none, nearly, to one of a hundred."""
SEED = 0
START = ((1, 0), (100, 0))
"""What is tried first: nearly all in range, and what the percentile is by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What every form is asked, and the classes of the rows if they have any."""

    inputs: Inputs
    labels: Array | None


class Job(child.Bounded, frozen=True, kw_only=True):
    """`layers` are those that may stay in float, by name, those first that INT8 harms most. Rows lie in the child's folder.

    After `for_s` no further form is tried.
    """

    quantization: quantize.Job
    layers: tuple[str, ...]
    trials: int
    embeds: bool
    seed: int = SEED


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One form. `lost` is how much smaller the part of right rows is than the float model's, or without labels the part that is
    answered otherwise; `noise` the power of the error as a part of the answers' own; `in_float` a part of all multiplications."""

    cut_ppm: int
    floats: int
    lost: float
    noise: float
    in_float: float
    on_front: bool = False


class Studied(child.Bound, frozen=True, kw_only=True):
    """Each form once, in the order in which they were tried."""

    trials: tuple[Trial, ...]
    seed: int
    rows: int


def obstacle() -> str | None:
    """Why nothing can be searched here, if so."""
    if importlib.util.find_spec("optuna") is None:
        return "a search takes Optuna, which is not installed; pip install 'seatrial[search]'"
    return None


def study(job: Job) -> Studied:
    until = job.until(time.monotonic())
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    forms = _Forms.of(job)
    plan = optuna.create_study(directions=["minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=job.seed))
    for cut_ppm, floats in START:
        plan.enqueue_trial({"cut_ppm": cut_ppm, "floats": floats})
    found: dict[tuple[int, int], Trial] = {}
    for _ in range(job.trials):
        if found and time.monotonic() > until:
            break
        asked = plan.ask()
        form = asked.suggest_int("cut_ppm", *CUT_PPM, log=True), asked.suggest_int("floats", 0, len(job.layers))
        if form not in found:
            found[form] = forms.attempt(*form)
        plan.tell(asked, (found[form].lost, found[form].in_float))
    return Studied(
        trials=with_front(list(found.values())),
        seed=job.seed,
        rows=forms.rows,
        whole=len(plan.trials) >= job.trials,
    )


def with_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Each is told whether no other loses as little with as little in float; of equals the one with the least noise is."""

    def rank(trial: Trial) -> tuple[float, float, float]:
        return trial.lost, trial.in_float, trial.noise

    def beaten(one: Trial) -> bool:
        return any(
            other.lost <= one.lost and other.in_float <= one.in_float and rank(other) < rank(one) for other in trials
        )

    return tuple(msgspec.structs.replace(trial, on_front=not beaten(trial)) for trial in trials)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forms:
    """All forms of one model, whose activations were watched once."""

    base: "Calibrated"
    histograms: "Mapping[str, Histogram]"
    work: Mapping[str, float]
    layers: tuple[str, ...]
    calls: list[dict[str, Array]]
    exact: dict[str, Array]
    labels: Array | None
    embeds: bool

    @staticmethod
    def of(job: Job) -> "_Forms":
        from seatrial_export.calibrate import histograms

        base, _ = quantize.calibrate(job.quantization)
        watched = quantize.read_calls(Path(job.quantization.calibration), rows=job.quantization.rows)
        calls = quantize.read_calls(Path(ROWS), rows=job.quantization.rows)
        labels = Path(LABELS).with_suffix(".npz")
        return _Forms(
            base=base,
            histograms=histograms(base.model, base.ranges, watched),
            work=multiplications(base.model, base.layers, watched[0]),
            layers=job.layers,
            calls=calls,
            exact=_answers(base.model, calls),
            labels=np.load(labels)[LABELS] if labels.exists() else None,
            embeds=job.embeds,
        )

    @property
    def rows(self) -> int:
        return sum(len(next(iter(call.values()))) for call in self.calls)

    def attempt(self, cut_ppm: int, floats: int) -> Trial:
        from seatrial_export.calibrate import percentile

        narrowed = {name: percentile(each, cut_ppm=cut_ppm) for name, each in self.histograms.items()}
        left = self.layers[:floats]
        form = replace(self.base, ranges={**self.base.ranges, **narrowed})
        found = _answers(form.quantized([node.name for node in form.layers if node.name not in left]), self.calls)
        return Trial(
            cut_ppm=cut_ppm,
            floats=floats,
            lost=lost(found, self.exact, self.labels, embeds=self.embeds),
            noise=noise(list(found.values()), list(self.exact.values())),
            in_float=sum(self.work[name] for name in left) / sum(self.work.values()),
        )


def lost(found: Inputs, exact: Inputs, labels: Array | None, *, embeds: bool) -> float:
    from seatrial_export.verify import same_neighbour, same_top1

    if labels is not None:
        [one], [other] = found.values(), exact.values()
        return float((other.argmax(axis=-1) == labels).mean() - (one.argmax(axis=-1) == labels).mean())
    same = same_neighbour if embeds else same_top1
    return max(1 - float(same(found[name], exact[name]).mean()) for name in exact)


def multiplications(model: "ModelProto", layers: "Sequence[NodeProto]", call: Mapping[str, Array]) -> dict[str, float]:
    """Of each of `layers`, in one call."""
    from seatrial_export.calibrate import observed
    from seatrial_export.onnx_graph import Graph, watched

    graph = Graph(model)
    outputs = [node.output[0] for node in layers]
    [made] = observed(watched(model, outputs), outputs, [call])

    def of_layer(node: "NodeProto") -> float:
        """Each number that it makes takes one multiplication for each weight of its channel."""
        weights, answer = graph.weights(node, 1), made[node.output[0]]
        assert weights is not None, "a layer has weights: this is a bug"
        channels = weights.shape[0] if node.op_type == "Conv" else answer.shape[-1]
        return float(answer.size * weights.size / channels)

    return {node.name: of_layer(node) for node in layers}


def _answers(model: "ModelProto", calls: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    from seatrial_export.calibrate import observed

    outputs = [value.name for value in model.graph.output]
    found = list(observed(model.SerializeToString(), outputs, calls))
    return {name: np.concatenate([call[name] for call in found]) for name in outputs}


if __name__ == "__main__":
    child.work(Job, study)
