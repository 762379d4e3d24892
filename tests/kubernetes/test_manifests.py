"""What the manifests promise, on what a cluster would get."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from seatrial import __version__
from seatrial.errors import InvalidSettings
from seatrial.settings import Settings, load_settings
from seatrial_monitoring.series import ALL
from seatrial_monitoring.written import DASHBOARD_PATH, RULES_PATH
from tests.kubernetes.manifests import (
    BASE,
    COMPONENTS,
    KUSTOMIZATIONS,
    ROOT,
    TRITON,
    Manifest,
    containers,
    environment,
    of_kind,
    pod,
    rendered,
    serving_container,
    with_component,
)
from tests.tools import tool

VERSIONS = ("1.27", "1.32", "1.37")
"""Of Kubernetes: the oldest that we promise, one between, and the newest whose schemas we have."""

OURS = (BASE, "k8s/overlays/example")
"""Those that run `seatrial serve`."""


@pytest.fixture(params=(*KUSTOMIZATIONS, *COMPONENTS), scope="module")
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Manifest]:
    if request.param in COMPONENTS:
        return with_component(request.param, tmp_path_factory.mktemp("overlay"))
    return rendered(request.param)


def test_everything_there_is_is_tested() -> None:
    folders = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "k8s").rglob("kustomization.yaml")}
    assert folders == {*KUSTOMIZATIONS, *COMPONENTS}


def is_custom(manifest: Manifest) -> bool:
    """Of a kind that is not Kubernetes' own."""
    version: str = manifest["apiVersion"]
    return version.startswith("monitoring.coreos.com/")


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_would_accept_them(manifests: Sequence[Manifest], version: str) -> None:
    for manifest in manifests:
        if not is_custom(manifest):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_is_noticed() -> None:
    [deployment] = of_kind(rendered(BASE), "Deployment")
    misspelt = yaml.safe_load(yaml.safe_dump(deployment).replace("readOnlyRootFilesystem", "readonlyRootFilesystem"))
    with pytest.raises(kubernetes_validate.ValidationError, match="readonlyRootFilesystem"):
        kubernetes_validate.validate(misspelt, VERSIONS[-1], strict=True)


def test_the_prometheus_operator_would_accept_its_own(tmp_path: Path) -> None:
    """CRD_SCHEMAS names a folder of JSON Schemas made from custom resource definitions, KIND-GROUP-VERSION.json."""
    if (folder := os.environ.get("CRD_SCHEMAS")) is None:
        pytest.skip("CRD_SCHEMAS names no folder with the schemas of custom resources")
    custom = [each for each in with_component("k8s/components/monitoring", tmp_path) if is_custom(each)]
    assert {each["kind"] for each in custom} == {"PodMonitor", "PrometheusRule"}
    for manifest in custom:
        name = f"{manifest['kind']}-{manifest['apiVersion'].replace('/', '-')}.json"
        jsonschema.validate(manifest, json.loads(Path(folder, name).read_text()))


def test_alerts_and_dashboard_are_those_that_are_tested_in_monitoring(tmp_path: Path) -> None:
    monitoring = with_component("k8s/components/monitoring", tmp_path)
    [rule] = of_kind(monitoring, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "monitoring" / RULES_PATH).read_text())
    [dashboard] = [
        each for each in of_kind(monitoring, "ConfigMap") if "grafana_dashboard" in each["metadata"]["labels"]
    ]
    assert dashboard["data"] == {"serving.json": (ROOT / "monitoring" / DASHBOARD_PATH).read_text()}


# Security


def test_no_container_can_be_root_write_its_root_or_gain_privileges(manifests: Sequence[Manifest]) -> None:
    of_pod = pod(manifests)["spec"]["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(manifests):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, container["name"]


def test_no_pod_gets_a_token_for_the_kubernetes_api(manifests: Sequence[Manifest]) -> None:
    [account] = of_kind(manifests, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert pod(manifests)["spec"]["automountServiceAccountToken"] is False
    assert pod(manifests)["spec"]["serviceAccountName"] == account["metadata"]["name"]


def test_every_image_has_a_tag_that_stays(manifests: Sequence[Manifest]) -> None:
    for container in containers(manifests):
        _, _, tag = container["image"].rpartition("/")[2].partition(":")
        assert tag not in ("", "latest"), container["image"]


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_our_image_is_the_one_of_this_version(folder: str) -> None:
    images = [each["image"] for each in containers(rendered(folder)) if "seatrial-serving" in each["image"]]
    assert images
    assert {image.rpartition(":")[2] for image in images} == {__version__}


def test_metrics_are_for_the_monitoring_namespace_alone(manifests: Sequence[Manifest]) -> None:
    [policy] = of_kind(manifests, "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    [rule] = [each for each in policy["spec"]["ingress"] if "metrics" in [port["port"] for port in each["ports"]]]
    assert rule["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert all(rule["ports"] for rule in policy["spec"]["egress"]), "a rule without ports lets everything out"


# Settings


@pytest.fixture
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment(rendered(request.param)).items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_every_variable_is_one_that_we_or_mlflow_or_the_manifest_reads(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = environment(rendered(folder))
    arguments = " ".join(argument for each in containers(rendered(folder)) for argument in each.get("args", ()))
    for name, value in variables.items():
        assert name.startswith(("SEATRIAL_", "MLFLOW_")) or f"$({name})" in arguments, f"nothing reads {name}"
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.tracking_uri == variables["MLFLOW_TRACKING_URI"]
    assert str(settings.home) == variables["SEATRIAL_HOME"]


def test_service_links_are_off_because_they_would_be_taken_for_settings(
    manifests: Sequence[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pod(manifests)["spec"]["enableServiceLinks"] is False
    monkeypatch.setenv("SEATRIAL_PORT_8000_TCP", "tcp://10.0.0.1:8000")
    with pytest.raises(InvalidSettings, match="SEATRIAL_PORT_8000_TCP"):
        load_settings()


@pytest.mark.parametrize(("settings", "folder"), [(each, each) for each in OURS], indirect=["settings"])
def test_the_ports_are_those_that_the_server_listens_on(settings: Settings, folder: str) -> None:
    serving = settings.serving
    assert serving.host == "0.0.0.0"
    wanted = {"http": serving.http_port, "grpc": serving.grpc_port, "metrics": serving.metrics_port}
    assert ports_of(rendered(folder)) == wanted
    services = of_kind(rendered(folder), "Service")
    for service in services:
        for port in service["spec"]["ports"]:
            assert port["port"] == wanted[port["targetPort"]], service["metadata"]["name"]
    assert {port["name"] for service in services for port in service["spec"]["ports"]} == set(wanted)


def ports_of(manifests: Sequence[Manifest]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in serving_container(manifests)["ports"]}


def test_triton_is_told_the_ports_that_the_manifest_names() -> None:
    arguments = dict(
        argument.removeprefix("--").split("=")
        for argument in serving_container(rendered(TRITON))["args"]
        if "=" in argument
    )
    assert {name: int(arguments[f"{name}-port"]) for name in ("http", "grpc", "metrics")} == ports_of(rendered(TRITON))


@pytest.mark.parametrize(("settings", "folder"), [(each, each) for each in OURS], indirect=["settings"])
def test_a_pod_has_time_to_drain_and_to_answer_the_longest_request(settings: Settings, folder: str) -> None:
    serving = settings.serving
    grace_s = pod(rendered(folder))["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= serving.drain_s + serving.limits.request_s + 5, "5 s for the engines to end"
    readiness = serving_container(rendered(folder))["readinessProbe"]
    assert serving.drain_s > readiness["periodSeconds"] * readiness["failureThreshold"] + readiness["timeoutSeconds"]


def test_triton_has_time_to_drain_and_to_answer_the_longest_request() -> None:
    container = serving_container(rendered(TRITON))
    _, wait_s = container["lifecycle"]["preStop"]["exec"]["command"]
    [exit_s] = [each.partition("=")[2] for each in container["args"] if each.startswith("--exit-timeout-secs=")]
    assert pod(rendered(TRITON))["spec"]["terminationGracePeriodSeconds"] >= int(wait_s) + int(exit_s) + 5


@pytest.mark.parametrize(("settings", "folder"), [(each, each) for each in OURS], indirect=["settings"])
def test_a_pod_has_time_to_fetch_and_warm_up_before_it_is_restarted(settings: Settings, folder: str) -> None:
    startup = serving_container(rendered(folder))["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 2 * settings.serving.engines.start_s


@pytest.mark.parametrize(("settings", "folder"), [(each, each) for each in OURS], indirect=["settings"])
def test_a_full_queue_leaves_memory_for_the_gateway_and_two_engines(settings: Settings, folder: str) -> None:
    limit = serving_container(rendered(folder))["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    assert settings.serving.batching.max_queue_bytes <= int(limit.removesuffix("Gi")) * 2**30 / 4


def test_what_is_written_is_written_to_a_volume_of_limited_size(manifests: Sequence[Manifest]) -> None:
    volumes = {each["name"]: each for each in pod(manifests)["spec"]["volumes"]}
    for volume in volumes.values():
        assert volume["emptyDir"]["sizeLimit"]
    for container in containers(manifests):
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounted.values()) <= set(volumes)
        if container.get("envFrom"):
            assert environment(manifests)["SEATRIAL_HOME"] in mounted


# What belongs together


def selectors(manifests: Sequence[Manifest]) -> Iterator[tuple[str, dict[str, str]]]:
    for manifest in manifests:
        spec = manifest.get("spec", {})
        match manifest["kind"]:
            case "Service":
                yield "Service", spec["selector"]
            case "Deployment" | "PodDisruptionBudget" | "PodMonitor" as kind:
                yield kind, spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                yield "NetworkPolicy", spec["podSelector"]["matchLabels"]
    for constraint in pod(manifests)["spec"]["topologySpreadConstraints"]:
        yield "topology", constraint["labelSelector"]["matchLabels"]


def test_everything_selects_the_same_pods_and_those_are_ours(manifests: Sequence[Manifest]) -> None:
    labels = pod(manifests)["metadata"]["labels"]
    found = dict(selectors(manifests))
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "topology"} <= set(found)
    for kind, selector in selectors(manifests):
        assert selector == labels, kind


def test_everything_carries_the_standard_labels(manifests: Sequence[Manifest]) -> None:
    for manifest in manifests:
        if manifest["kind"] != "Namespace":
            labels = manifest["metadata"]["labels"]
            assert (labels["app.kubernetes.io/name"], labels["app.kubernetes.io/part-of"]) == ("seatrial", "seatrial")


@pytest.mark.parametrize("folder", OURS)
def test_the_autoscaler_scales_the_deployment_and_alone_decides_how_many(folder: str) -> None:
    [deployment], [scaler] = (
        of_kind(rendered(folder), "Deployment"),
        of_kind(rendered(folder), "HorizontalPodAutoscaler"),
    )
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["minReplicas"] >= 2, "one may go while another stays"
    assert "cpu" in serving_container(rendered(folder))["resources"]["requests"], "utilization is of what was requested"


def test_every_container_says_what_it_needs_and_may_take(manifests: Sequence[Manifest]) -> None:
    for container in containers(manifests):
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][bound]), container["name"]


def test_triton_runs_on_nodes_with_gpus_and_takes_one() -> None:
    spec = pod(rendered(TRITON))["spec"]
    assert serving_container(rendered(TRITON))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"][0]["matchExpressions"][0]["key"] == "nvidia.com/gpu.present"
    assert of_kind(rendered(TRITON), "HorizontalPodAutoscaler") == [], "CPU says nothing about a GPU"


# The queue as a metric


def adapter_rule() -> dict[str, str]:
    text = (ROOT / "k8s/components/queue-time/prometheus-adapter.yaml").read_text()
    [rule] = yaml.safe_load(text)["rules"]["custom"]
    return {"metric": rule["name"]["as"], "query": rule["metricsQuery"], "series": rule["seriesQuery"]}


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes_of_one_of_ours(tmp_path: Path) -> None:
    [scaler] = of_kind(with_component("k8s/components/queue-time", tmp_path), "HorizontalPodAutoscaler")
    assert [each["type"] for each in scaler["spec"]["metrics"]] == ["Resource", "Pods"]
    assert scaler["spec"]["metrics"][1]["pods"]["metric"]["name"] == adapter_rule()["metric"]
    histograms = {series.name for series in ALL if series.kind == "histogram"}
    assert adapter_rule()["series"].partition("_count{")[0] in histograms


def test_the_adapters_query_is_the_mean_time_in_the_queue_and_0_without_traffic(tmp_path: Path) -> None:
    """The real Prometheus evaluates it: `busy` keeps each of 10 requests a second waiting for 5 ms, `idle` gets none."""
    query = adapter_rule()["query"].replace("<<.LabelMatchers>>", 'pod=~".+"').replace("<<.GroupBy>>", "pod")
    series = "seatrial_queue_duration_seconds"
    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f'{series}_sum{{pod="busy",model="a"}}', "values": "0+0.75x40"},
                    {"series": f'{series}_count{{pod="busy",model="a"}}', "values": "0+150x40"},
                    {"series": f'{series}_sum{{pod="idle",model="a"}}', "values": "7+0x40"},
                    {"series": f'{series}_count{{pod="idle",model="a"}}', "values": "7+0x40"},
                ],
                "promql_expr_test": [
                    {
                        "expr": f"round({query}, 0.000001)",
                        "eval_time": "10m",
                        "exp_samples": [
                            {"labels": '{pod="busy"}', "value": 0.005},
                            {"labels": '{pod="idle"}', "value": 0},
                        ],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
