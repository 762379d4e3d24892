"""The append-only record of promotions and rollbacks, with their evidence: who moved which alias where, when and why.

An entry is a run of the MLflow experiment `seatrial/ledger`, so that everybody who shares the registry shares the ledger.
It is written before the alias moves and closed after: an entry that stayed open tells what a killed process was about to
do, and `settle` finds out how far it came. Each entry names the digest of the one before, so that a changed or missing one
is noticed.
"""

import json
import os
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.entities import Run

from seatrial.errors import NotInRegistry
from seatrial.registry import ModelRef
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial_promotion.entry import Act, Entry, GateResult, Verdict

EXPERIMENT = "seatrial/ledger"
ENTRY = "entry.json"
MODEL_TAG, DIGEST_TAG, OWNER_TAG = "seatrial.model", "seatrial.entry_digest", "seatrial.owner"
ABANDONED_AFTER_S = 60.0
"""An entry of another machine that is open for longer belongs to nobody any more: moving an alias takes milliseconds."""


_STATUS = {Verdict.DONE: "FINISHED", Verdict.REFUSED: "FAILED", Verdict.ABANDONED: "KILLED", Verdict.OPEN: "RUNNING"}
_VERDICT = {status: verdict for verdict, status in _STATUS.items()}


@dataclass(frozen=True, slots=True)
class Ledger:
    registry: EmbeddedRegistry
    _owner: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")

    def append(self, entry: Entry) -> Entry:
        """Write `entry` with its verdict; while that is `open`, `close` must follow. Returns it as it was written."""
        experiment = self.registry.experiment(EXPERIMENT)
        latest = self.entries(entry.model)
        entry = replace(entry, previous=latest[-1].digest if latest else "")
        tags = {MODEL_TAG: entry.model, DIGEST_TAG: entry.digest, OWNER_TAG: self._owner}
        name = f"{entry.act} {entry.model} {entry.before or '-'} -> {entry.after}"
        run = self.registry.client.create_run(experiment, tags=tags, run_name=name)
        self.registry.client.log_text(run.info.run_id, entry.encode().decode(), ENTRY)
        written = replace(entry, id=run.info.run_id)
        return self.close(written, entry.verdict) if entry.verdict is not Verdict.OPEN else written

    def close(self, entry: Entry, verdict: Verdict) -> Entry:
        self.registry.client.set_terminated(entry.id, _STATUS[verdict])
        return replace(entry, verdict=verdict)

    def entries(self, model: str) -> list[Entry]:
        """All entries of `model`, oldest first."""
        client = self.registry.client
        found = client.search_runs(
            [self.registry.experiment(EXPERIMENT)],
            filter_string=f"tags.`{MODEL_TAG}` = '{model}'",
            order_by=["attributes.start_time ASC"],
            max_results=10_000,
        )
        return [entry for run in found if (entry := self._read(run)) is not None]

    def models(self) -> list[str]:
        """Every model that has an entry."""
        found = self.registry.client.search_runs([self.registry.experiment(EXPERIMENT)], max_results=10_000)
        return sorted({run.data.tags[MODEL_TAG] for run in found if MODEL_TAG in run.data.tags})

    def settle(self, model: str) -> list[Entry]:
        """Close the entries that a dead process left open, by where the alias points now. Returns those it closed."""
        settled = []
        for entry in self.entries(model):
            if entry.verdict is Verdict.OPEN and self._orphaned(entry):
                moved = self.target(model, entry.alias) == entry.after
                settled.append(self.close(entry, Verdict.DONE if moved else Verdict.ABANDONED))
        return settled

    def target(self, model: str, alias: str) -> str:
        """The version that the alias points at now; empty if there is none."""
        try:
            return self.registry.resolve(ModelRef(name=model, alias=alias)).version
        except NotInRegistry:
            return ""

    def _orphaned(self, entry: Entry) -> bool:
        run = self.registry.client.get_run(entry.id)
        host, _, process = run.data.tags.get(OWNER_TAG, "").rpartition(":")
        if host == socket.gethostname():
            return process != str(os.getpid()) and not Path(f"/proc/{process}").exists()
        started_s: float = run.info.start_time / 1000
        return time.time() - started_s > ABANDONED_AFTER_S

    def _read(self, run: Run) -> Entry | None:
        """None for a run whose process died before it had written the entry: it had moved nothing."""
        with TemporaryDirectory() as folder:
            try:
                self.registry.fetch(run.info.run_id, ENTRY, Path(folder) / ENTRY)
            except NotInRegistry:
                return None
            content: dict[str, Any] = json.loads((Path(folder) / ENTRY).read_text())
        gates = tuple(GateResult(**gate) for gate in content.pop("gates"))
        act = Act(content.pop("act"))
        return Entry(**content, act=act, gates=gates, id=run.info.run_id, verdict=_VERDICT[run.info.status])
