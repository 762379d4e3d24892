"""Every file that is generated from the specification, by its path."""

from pathlib import Path

from seatrial.files import telling_of_full_disk
from seatrial_monitoring.grafana import dashboard
from seatrial_monitoring.objectives import Objectives
from seatrial_monitoring.rule_files import RULES_FILE, proofs_of_causes, proofs_of_objectives, rule_file
from seatrial_monitoring.runbook import runbook

DASHBOARD_PATH = "grafana-dashboards/serving.json"
RULES_PATH = f"prometheus-rules/{RULES_FILE}"
PROOFS = ("prometheus-rules/causes.test.yaml", "prometheus-rules/objectives.test.yaml")


def watching(objectives: Objectives) -> dict[str, str]:
    """What Grafana and Prometheus read."""
    return {
        DASHBOARD_PATH: dashboard(runbook=objectives.runbook),
        RULES_PATH: rule_file(objectives),
        PROOFS[0]: proofs_of_causes(objectives),
        PROOFS[1]: proofs_of_objectives(objectives),
    }


def write(folder: Path, objectives: Objectives) -> list[Path]:
    """Write everything below `folder`, the runbook too. Raises `DiskFull`."""
    files = watching(objectives) | {"runbook.md": runbook(objectives)}
    for name, text in files.items():
        path = folder / name
        with telling_of_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return [folder / name for name in files]
