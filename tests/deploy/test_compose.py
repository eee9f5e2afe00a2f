"""The compose files: they are valid, run what exists, and nothing is reachable from outside the machine."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.observability.hub import DEFAULT_PORT

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SCHEMA = os.environ.get("GRADGUARD_COMPOSE_SCHEMA", "")
FILES = ("compose.yaml", "compose.gpu.yaml")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load("compose.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.mark.skipif(not SCHEMA, reason="GRADGUARD_COMPOSE_SCHEMA does not name compose-spec.json")
@pytest.mark.parametrize("name", FILES)
def test_compose_files_follow_the_specification(name: str) -> None:
    validator = jsonschema.Draft7Validator(json.loads(Path(SCHEMA).read_text()))
    assert [error.message for error in validator.iter_errors(load(name))] == []


def test_every_part_of_the_system_is_there(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"head", "worker", "service", "prometheus", "alertmanager", "grafana"}


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert {port.rpartition(":")[2] for port in ports} == {"8410", "8265", "9090", "9093", "3000"}
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_secret_has_a_default_and_the_file_that_holds_it_is_ignored(compose: dict[str, Any]) -> None:
    for name in ("head", "worker", "service"):
        environment = compose["services"][name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    grafana = compose["services"]["grafana"]["environment"]
    assert grafana["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")
    assert "deploy/.env" in (DEPLOY.parent / ".gitignore").read_text().splitlines()


def test_everything_that_is_mounted_or_built_exists(compose: dict[str, Any]) -> None:
    named = set(compose["volumes"])
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in named or (DEPLOY / source).exists(), source
    build = compose["services"]["head"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_prometheus_finds_the_hub_and_grafana_finds_prometheus(compose: dict[str, Any]) -> None:
    """All three look on the loopback interface of the head's network."""
    for name in ("prometheus", "alertmanager", "grafana"):
        assert compose["services"][name]["network_mode"] == "service:head"
    scrapes = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert f"127.0.0.1:{DEFAULT_PORT}" in scrapes
    sources = (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert "http://127.0.0.1:9090" in sources
    mounted = {volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]}
    providers = (DEPLOY / "grafana" / "provisioning" / "dashboards" / "gradguard.yml").read_text()
    assert re.search(r"path: (\S+)", providers)[1] in mounted


def test_the_service_is_scraped_with_a_token_that_it_makes(compose: dict[str, Any]) -> None:
    services = compose["services"]
    alone, with_service = load("prometheus/prometheus.yml"), load("prometheus/compose.yml")
    alone_hub, _ = alone.pop("scrape_configs")
    hub, scrape, ray = with_service.pop("scrape_configs")
    assert (with_service, hub) == (alone, alone_hub)
    assert scrape["honor_labels"] is True, "the label job of what waits is the training job"
    (nodes,), (head,) = ray["dns_sd_configs"], ray["static_configs"][0]["targets"]
    assert nodes["names"] == ["worker"]
    for name, port in (("head", head.rpartition(":")[2]), ("worker", nodes["port"])):
        assert f"--metrics-export-port={port}" in services[name]["command"]
    folders = dict(volume.split(":")[1::-1] for volume in services["prometheus"]["volumes"])
    assert scrape["static_configs"] == [{"targets": ["service:8410"]}]
    token = Path(scrape["authorization"]["credentials_file"])
    made = dict(volume.split(":") for volume in services["service"]["volumes"])[folders[str(token.parent)]]
    assert f"token={made}/{token.name}" in services["service"]["command"][2]
    assert f"{made}" in (DEPLOY / "Dockerfile").read_text(), "a volume takes its owner from the image"


def test_the_start_of_the_service_makes_the_token_once(compose: dict[str, Any], tmp_path: Path) -> None:
    """The command itself, with folders of the test and a `gradguard` that only prints."""
    script = compose["services"]["service"]["command"][2].replace("$$", "$")
    script = script.replace("/home/gradguard", str(tmp_path))
    (tmp_path / "metrics").mkdir()
    command = tmp_path / "gradguard"
    command.write_text('#!/bin/sh\n[ "$1" = serve ] && exec true\necho "$3-secret"\n')
    command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    seen = []
    for _ in range(2):
        subprocess.run(["sh", "-ec", script], env=environment, check=True)
        seen.append((tmp_path / "metrics" / "token").read_text())
        command.write_text('#!/bin/sh\n[ "$1" = serve ] && exec true\necho another\n')
    assert seen[0].startswith("prometheus-")
    assert seen[0] == seen[1]


def test_the_options_of_ray_start_exist(compose: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    for name in ("head", "worker"):
        words = shlex.split(compose["services"][name]["command"])
        assert words[:2] == ["ray", "start"]
        assert {word.partition("=")[0] for word in words[2:]} <= known


def test_images_that_are_not_ours_are_pinned(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["image"] == "gradguard" or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def test_prometheus_reads_files_that_exist(compose: dict[str, Any]) -> None:
    """Alertmanager's file is beside them as soon as Prometheus has an Alertmanager."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "compose.yml").read_text())
    readers = ["prometheus", *(["alertmanager"] if "alerting" in config else [])]
    for name in readers:
        service = compose["services"][name]
        (path,) = (word.partition("=")[2] for word in service["command"] if word.startswith("--config.file="))
        source, folder, _ = next(volume for volume in service["volumes"] if volume.endswith(":ro")).split(":")
        assert (DEPLOY / source / Path(path).relative_to(folder)).is_file()
