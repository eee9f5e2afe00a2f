"""The Kubernetes files: valid by published schemas, with least rights, and their parts find each other."""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from jobs.observability.hub import DEFAULT_PORT
from jobs.spec.job_spec import JobSpec

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
SCHEMAS = os.environ.get("GRADGUARD_KUBERAY_SCHEMAS", "")
OPEN = "x-kubernetes-preserve-unknown-fields"

Document = dict[str, Any]


def documents() -> list[Document]:
    names = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
    return [document for name in names for document in yaml.safe_load_all(name.read_text())]


def named(kind: str, name: str = "gradguard") -> Document:
    (found,) = (d for d in documents() if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return found


def title(document: Document) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


OURS = [d for d in documents() if d["apiVersion"] in ("v1", "apps/v1", "networking.k8s.io/v1")]
RAY = [document for document in documents() if document["apiVersion"] == "ray.io/v1"]


def closed(schema: Any) -> Any:
    """A schema of a custom resource, as strict as the API server is when it is asked to be."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False) is True:
        made.pop("type", None)
    properties = made.get("properties")
    if isinstance(properties, Mapping) and properties and made.get(OPEN) is not True:
        made.setdefault("additionalProperties", False)
    if isinstance(made.get("required"), list) and isinstance(properties, Mapping):
        made["required"] = [name for name in made["required"] if "default" not in properties.get(name, {})]
    return made


def ray_schema(kind: str) -> Any:
    return closed(json.loads((Path(SCHEMAS) / f"{kind}.openapi.json").read_text()))


@pytest.mark.parametrize("document", OURS, ids=title)
def test_kubernetes_knows_every_field(document: Document) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validate.validate(document, validate.latest_version(), strict=True)


@pytest.mark.skipif(
    not SCHEMAS, reason="GRADGUARD_KUBERAY_SCHEMAS does not name the folder of KubeRay's schemas"
)
@pytest.mark.parametrize("document", RAY, ids=title)
def test_kuberay_knows_every_field(document: Document) -> None:
    jsonschema.Draft202012Validator(ray_schema(document["kind"])).validate(document)


@pytest.mark.skipif(
    not SCHEMAS, reason="GRADGUARD_KUBERAY_SCHEMAS does not name the folder of KubeRay's schemas"
)
def test_a_mistake_in_a_ray_cluster_is_found() -> None:
    wrong = copy.deepcopy(named("RayCluster"))
    wrong["spec"]["workerGroupSpecs"][0]["replicas"] = "one"
    wrong["spec"]["workerGroupSpec"] = []
    assert len(list(jsonschema.Draft202012Validator(ray_schema("RayCluster")).iter_errors(wrong))) == 2


def ray_clusters() -> Iterator[Document]:
    yield named("RayCluster")["spec"]
    yield named("RayJob", "fashion")["spec"]["rayClusterSpec"]


def pods() -> Iterator[Document]:
    for cluster in ray_clusters():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]
    yield named("Deployment")["spec"]["template"]["spec"]


def test_every_pod_runs_as_an_unprivileged_user() -> None:
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001  # as in the Dockerfile
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_ray_is_the_version_of_the_image_asks_for_a_token_and_has_an_init() -> None:
    for cluster in ray_clusters():
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["authOptions"] == {"mode": "token"}
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert group["template"]["spec"]["shareProcessNamespace"] is True


def test_the_service_is_probed_and_reaches_ray_with_its_token() -> None:
    (container,) = named("Deployment")["spec"]["template"]["spec"]["containers"]
    probes = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")
    }
    assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert "--address=http://gradguard-head-svc:8265" in container["args"]
    environment = {entry["name"]: entry for entry in container["env"]}
    secret = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": named("RayCluster")["metadata"]["name"], "key": "auth_token"}


def test_all_pods_keep_their_files_on_the_one_volume() -> None:
    claim = named("PersistentVolumeClaim", "gradguard-runs")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods():
        claims = [
            v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        ]
        assert claims == ["gradguard-runs"]


def test_the_example_is_a_valid_spec_whose_hub_can_be_scraped() -> None:
    text = named("ConfigMap", "fashion")["data"]["fashion.yaml"]
    spec = JobSpec.from_dict(yaml.safe_load(text))
    cluster = named("RayJob", "fashion")["spec"]["rayClusterSpec"]
    assert spec.metrics.host == "0.0.0.0"
    assert spec.scale.workers <= sum(group["replicas"] for group in cluster["workerGroupSpecs"])


def test_only_the_cluster_the_service_the_operator_and_prometheus_reach_a_ray_node() -> None:
    policy = named("NetworkPolicy", "gradguard-ray")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    among, jobs, metrics = policy["ingress"]
    assert among["from"] == [{"podSelector": policy["podSelector"]}]
    assert jobs["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert metrics["ports"] == [{"protocol": "TCP", "port": DEFAULT_PORT}]
    assert not [
        peer for rule in policy["ingress"] for peer in rule["from"] if peer.get("podSelector") in (None, {})
    ]


def test_the_monitors_select_ports_that_exist() -> None:
    for cluster in ray_clusters():
        (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        assert {"name": "hub", "containerPort": DEFAULT_PORT} in container["ports"]
    (jobs,) = named("ServiceMonitor", "gradguard-jobs")["spec"]["endpoints"]
    assert jobs["port"] == "hub"
    assert jobs["honorLabels"] is True
    service = named("Service")
    monitor = named("ServiceMonitor", "gradguard-service")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    secret = endpoint["authorization"]["credentials"]  # the metrics of the service need a token
    readme = (FOLDER.parent / "README.md").read_text()
    assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in readme


def test_kustomize_applies_everything_but_the_example() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    files = {path.name for path in FOLDER.glob("*.yaml")}
    assert {*kustomization["resources"], "rayjob.yaml", "kustomization.yaml"} == files
    images = {container["image"].partition(":")[0] for pod in pods() for container in pod["containers"]}
    assert images == {image["name"] for image in kustomization["images"]}
