"""An export in MLflow: one run, from the source's LoggedModel to its variants, with bundle and report as artifacts.

The model version carries tags only. Its bundle tag is written last, and until then the run that the version names holds
every bundle that the version ever named: whoever resolves it meanwhile finds what was there before. A killed export
leaves a run that says RUNNING, which the next export from the same home takes over.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, LoggedModelOutput, Metric, Run
from mlflow.exceptions import MlflowException

from seatrial.bundle import Bundle
from seatrial.errors import BundleCorrupt, NotInRegistry, RegistryUnreachable
from seatrial.registry import BUNDLE_TAG, EXPORT_RUN_TAG, ModelRef, ModelVersion
from seatrial.registry.bundles import ARTIFACT_FOLDER, fetch_bundle
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_export.candidate import Verdict
from seatrial_export.report import Report, Row

EXPERIMENT = "seatrial/export"
OF_TAG, OWNER_TAG = "seatrial.export_of", "seatrial.owner"
VERDICT_TAG, INTERRUPTED_TAG = "seatrial.verdict", "seatrial.interrupted"
ON_TAG = "seatrial.on"
"""The machine that a variant's figures are of; empty for the one that exported."""
REPORT_FOLDER = "report"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRun:
    id: str
    experiment: str
    artifacts: str
    registry: EmbeddedRegistry
    version: ModelVersion

    def publish(
        self,
        bundles: dict[str, Bundle],
        report: Report,
        *,
        unverified: Mapping[str, Path],
        page: Path,
        store: Path,
        tell: Callable[[str], None],
    ) -> None:
        """Log everything, and only then let the version name its new bundles, one for each target.

        What is `unverified`, a folder of the run by its origin, is kept for whoever can run it. No version ever names it.
        """
        tell("logging report and variants")
        self._log_report(report, page)
        for folder, origin in unverified.items():
            self.registry.client.log_artifacts(self.id, str(origin), folder)
        outputs = self._log_variants(report.rows)
        if bundles:
            tell("logging the bundle")
            for bundle in bundles.values():
                self._log_bundle(bundle)
            self._carry_over(store)
        if outputs:
            self.registry.client.log_outputs(self.id, outputs)
        if bundles:
            self._name(bundles, tell)

    def _name(self, bundles: dict[str, Bundle], tell: Callable[[str], None]) -> None:
        tell("naming the run")
        self._tag(EXPORT_RUN_TAG, self.id)
        tell("naming the bundle")
        for target, bundle in bundles.items():
            self._tag(BUNDLE_TAG + target, bundle.digest)

    def _log_bundle(self, bundle: Bundle) -> None:
        self.registry.client.log_artifacts(self.id, str(bundle.path), f"{ARTIFACT_FOLDER}/{bundle.path.name}")

    def _log_report(self, report: Report, page: Path) -> None:
        client = self.registry.client
        client.log_text(self.id, report.encode().decode(), f"{REPORT_FOLDER}/report.json")
        client.log_artifact(self.id, str(page), REPORT_FOLDER)
        client.set_tag(self.id, VERDICT_TAG, report.verdict)

    def _log_variants(self, rows: Sequence[Row]) -> list[LoggedModelOutput]:
        """Each candidate that was measured or is unverified, as a LoggedModel; what the run can name as its outputs."""
        client = self.registry.client
        outputs, metrics = [], []
        for row in rows:
            if row.row_ms is None and row.verdict is not Verdict.UNVERIFIED:
                continue
            model = client.create_logged_model(
                self.experiment,
                name=row.name,
                source_run_id=self.id,
                params={"target": row.target, "precision": row.precision, "compression": ", ".join(row.compression)},
                tags={
                    OF_TAG: str(self.version),
                    VERDICT_TAG: row.verdict,
                    "seatrial.reason": row.reason,
                    ON_TAG: row.on,
                },
                model_type="seatrial-variant",
            )
            client.finalize_logged_model(model.model_id, "READY")
            outputs.append(LoggedModelOutput(model.model_id, step=0))
            metrics += [_metric(name, value, model.model_id) for name, value in row.metrics().items()]
        client.log_batch(self.id, metrics=metrics)
        return outputs

    def _carry_over(self, store: Path) -> None:
        """Put the bundles that the version names already into this run too, before it names this run."""
        now = self.registry.resolve(ModelRef(name=self.version.name, version=self.version.version))
        for tag in now.tags:
            if tag.startswith(BUNDLE_TAG):
                with suppress(NotInRegistry, BundleCorrupt):  # what was lost before is not made worse
                    self._log_bundle(fetch_bundle(self.registry, now, target=tag.removeprefix(BUNDLE_TAG), store=store))

    def _tag(self, key: str, value: str) -> None:
        self.registry.client.set_model_version_tag(self.version.name, self.version.version, key, value)


@contextmanager
def export_run(registry: EmbeddedRegistry, version: ModelVersion, settings: Settings) -> Iterator[ExportRun]:
    """A run for exporting `version`; how the block ends decides its status. Nobody else exports it from this home.

    An error of MLflow's inside the block says that the same command does it again.
    """
    client = registry.client
    try:
        experiment = registry.experiment(EXPERIMENT)
        owner = f"{socket.gethostname()}:{settings.home.absolute()}"
        run = _take_over(client, experiment, version, owner) or _begin(client, experiment, version, owner)
        try:
            yield ExportRun(
                id=run.info.run_id,
                experiment=experiment,
                artifacts=run.info.artifact_uri,
                registry=registry,
                version=version,
            )
        except BaseException as error:
            client.set_terminated(run.info.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        client.set_terminated(run.info.run_id, "FINISHED")
    except MlflowException as error:
        raise RegistryUnreachable(
            f"the registry at {settings.tracking_uri} failed: {error}. {version} is as it was; "
            "run the same command again"
        ) from error


def _begin(client: MlflowClient, experiment: str, version: ModelVersion, owner: str) -> Run:
    run = client.create_run(experiment, tags={OF_TAG: str(version), OWNER_TAG: owner}, run_name=str(version))
    if version.logged_model:
        client.log_inputs(run.info.run_id, models=[LoggedModelInput(version.logged_model)])
    return run


def _take_over(client: MlflowClient, experiment: str, version: ModelVersion, owner: str) -> Run | None:
    """The run that a killed export of `version` left open, marked, without the variants that it had logged already.

    One that had come to its outputs, which cannot be taken back, is ended instead. Only runs from this home count, which
    nobody else can be exporting from: another machine's run may be alive.
    """
    left = client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.`{OF_TAG}` = '{version}'")
    taken = None
    for run in left:
        if run.data.tags.get(OWNER_TAG) != owner:
            continue
        run_id = run.info.run_id
        for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            client.delete_logged_model(model.model_id)
        client.set_tag(run_id, INTERRUPTED_TAG, "true")
        if taken is None and not (run.outputs and run.outputs.model_outputs):
            taken = run
        else:
            client.set_terminated(run_id, "KILLED")
    return taken


def _metric(name: str, value: float, model_id: str) -> Metric:
    return Metric(name, value, int(time.time() * 1000), 0, model_id=model_id)
