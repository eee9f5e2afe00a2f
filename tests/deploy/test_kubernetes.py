"""The Kubernetes files: valid by published schemas, with least rights, and their parts find each other."""

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from jobs.cluster.driver import METRICS_HOST_VARIABLE
from jobs.observability.hub import DEFAULT_PORT
from jobs.spec.job_spec import JobSpec
from service.settings import DATABASE_VARIABLE

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
SCHEMAS = os.environ.get("GRADGUARD_KUBERAY_SCHEMAS", "")
OPEN = "x-kubernetes-preserve-unknown-fields"

Document = dict[str, Any]


def documents() -> list[Document]:
    names = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
    return [document for name in names for document in yaml.safe_load_all(name.read_text())]


def rendered(folder: Path) -> list[Document]:
    """What `kubectl apply -k` would send."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def found(documents: list[Document], kind: str, name: str = "gradguard") -> Document:
    (one,) = (d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return one


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


def problems_of(document: Document) -> list[str]:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    try:
        validate.validate(document, validate.latest_version(), strict=True)
    except validate.ValidationError as error:
        return [str(error)]
    return []


def ray_problems_of(document: Document) -> list[str]:
    errors = jsonschema.Draft202012Validator(ray_schema(document["kind"])).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


@pytest.mark.parametrize("document", OURS, ids=title)
def test_kubernetes_knows_every_field(document: Document) -> None:
    assert problems_of(document) == []


@pytest.mark.skipif(
    not SCHEMAS, reason="GRADGUARD_KUBERAY_SCHEMAS does not name the folder of KubeRay's schemas"
)
@pytest.mark.parametrize("document", RAY, ids=title)
def test_kuberay_knows_every_field(document: Document) -> None:
    assert ray_problems_of(document) == []


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


def claims_of(pod: Document) -> list[str]:
    return [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]


def test_all_pods_keep_their_files_on_the_one_volume() -> None:
    claim = named("PersistentVolumeClaim", "gradguard-runs")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods():
        assert "gradguard-runs" in claims_of(pod)
        assert pod["securityContext"]["fsGroup"] == 10001  # so that the user may write to it


def test_the_database_is_not_on_the_shared_volume() -> None:
    pod = named("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (url,) = (entry["value"] for entry in container["env"] if entry["name"] == DATABASE_VARIABLE)
    place = Path(url.removeprefix("sqlite:///"))
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(place.parent) == mounts["database"]
    claim = named("PersistentVolumeClaim", "gradguard-database")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claims_of(pod) == ["gradguard-database", "gradguard-runs"]
    assert named("Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_the_cluster_grows_and_only_the_autoscaler_holds_an_account() -> None:
    spec = named("RayCluster")["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    (mount,) = spec["autoscalerOptions"]["volumeMounts"]
    assert mount["mountPath"] == account
    head = spec["headGroupSpec"]["template"]["spec"]
    (volume,) = (v for v in head["volumes"] if v["name"] == mount["name"])
    paths = {path for source in volume["projected"]["sources"] for path in paths_of(source)}
    assert paths == {"token", "ca.crt", "namespace"}
    for pod in pods():
        for container in pod["containers"]:
            assert account not in [mount["mountPath"] for mount in container["volumeMounts"]]


def paths_of(source: Document) -> list[str]:
    (content,) = source.values()
    return [content["path"]] if "path" in content else [item["path"] for item in content["items"]]


def test_workers_tolerate_the_taint_of_gpu_nodes() -> None:
    for group in named("RayCluster")["spec"]["workerGroupSpecs"]:
        tolerations = group["template"]["spec"]["tolerations"]
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in tolerations


OVERLAYS = ("small", "gpu", "production")
kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid(name: str) -> None:
    documents = rendered(FOLDER.parent / "overlays" / name)
    kinds = ("v1", "apps/v1", "networking.k8s.io/v1")
    assert [p for d in documents if d["apiVersion"] in kinds for p in problems_of(d)] == []
    if SCHEMAS:
        assert ray_problems_of(found(documents, "RayCluster")) == []
    images = {c["image"] for d in documents if d["kind"] == "Deployment" for c in containers_of(d)}
    assert images == {"registry.example.com/gradguard:0.1.0"}


def containers_of(deployment: Document) -> list[Document]:
    return deployment["spec"]["template"]["spec"]["containers"]


def worker_of(documents: list[Document]) -> Document:
    (group,) = found(documents, "RayCluster")["spec"]["workerGroupSpecs"]
    return group


@kubectl
def test_the_small_overlay_needs_no_gpu() -> None:
    assert "nvidia" not in json.dumps(
        worker_of(rendered(FOLDER.parent / "overlays" / "small"))["template"]["spec"]["containers"]
    )


@kubectl
def test_the_gpu_overlay_asks_for_whole_nodes_of_one_kind() -> None:
    group = worker_of(rendered(FOLDER.parent / "overlays" / "gpu"))
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert group["template"]["spec"]["nodeSelector"]
    assert container["env"] == [{"name": METRICS_HOST_VARIABLE, "value": "0.0.0.0"}]


@kubectl
def test_production_has_two_services_on_postgresql_behind_tls() -> None:
    documents = rendered(FOLDER.parent / "overlays" / "production")
    deployment = found(documents, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"] == {"type": "RollingUpdate"}
    (container,) = containers_of(deployment)
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment[DATABASE_VARIABLE]["valueFrom"]["secretKeyRef"]["name"] == "gradguard-database"
    assert claims_of(deployment["spec"]["template"]["spec"]) == ["gradguard-runs"]
    assert not [d for d in documents if d["metadata"]["name"] == "gradguard-database"]
    ingress = found(documents, "Ingress")["spec"]
    (rule,) = ingress["rules"]
    assert ingress["tls"][0]["hosts"] == [rule["host"]]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend["port"]["name"] in [p["name"] for p in found(documents, "Service")["spec"]["ports"]]


def test_up_of_the_hub_has_the_name_that_the_alert_asks_for() -> None:
    monitor = named("ServiceMonitor", "gradguard-jobs")["spec"]
    (relabeling,) = monitor["endpoints"][0]["relabelings"]
    assert relabeling == {"targetLabel": "job", "replacement": "gradguard"}
    rules = (FOLDER.parent / "prometheus" / "rules.yml").read_text()
    assert f'up{{job="{relabeling["replacement"]}"}}' in rules


def test_the_example_is_a_valid_spec_whose_hub_can_be_scraped() -> None:
    text = named("ConfigMap", "fashion")["data"]["fashion.yaml"]
    spec = JobSpec.from_dict(yaml.safe_load(text))
    cluster = named("RayJob", "fashion")["spec"]["rayClusterSpec"]
    assert spec.metrics.host is None
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": METRICS_HOST_VARIABLE, "value": "0.0.0.0"} in head["env"]
    assert spec.scale.workers <= sum(group["replicas"] for group in cluster["workerGroupSpecs"])


def test_only_the_cluster_the_service_the_operator_and_prometheus_reach_a_ray_node() -> None:
    policy = named("NetworkPolicy", "gradguard-ray")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    among, jobs, metrics = policy["ingress"]
    assert among["from"] == [{"podSelector": policy["podSelector"]}]
    assert jobs["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert metrics["ports"] == [{"protocol": "TCP", "port": port} for port in (DEFAULT_PORT, 8080)]
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
    ray = named("PodMonitor", "gradguard-ray")["spec"]
    assert ray["selector"]["matchLabels"] == {"ray.io/cluster": named("RayCluster")["metadata"]["name"]}
    assert ray["podMetricsEndpoints"][0]["port"] == "metrics", "the name that KubeRay gives the port"
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
