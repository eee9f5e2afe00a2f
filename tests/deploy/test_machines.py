"""One machine by systemd, or many by Ray's cluster launcher: those who read the files accept them."""

import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "systemd" / "gradguard.service"
LAUNCHER = ROOT / "deploy" / "cloud" / "aws.yaml"
EXPOSURE = 30
"""At most 3.0 of 10, in the words of `systemd-analyze security`."""

systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def unit() -> ConfigParser:
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return yaml.safe_load(LAUNCHER.read_text())


@systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text, found = re.subn(r"ExecStart=\S+", f"ExecStart={sys.executable}", UNIT.read_text())
    assert found == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = analyze("verify", "--man=no", copy)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@systemd
def test_the_unit_exposes_little() -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", UNIT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_listens_on_loopback_as_an_unprivileged_user(unit: ConfigParser) -> None:
    service = unit["Service"]
    assert "--host 127.0.0.1" in service["ExecStart"]
    assert service["User"] == "gradguard"
    assert service["NoNewPrivileges"] == "yes"
    assert service["Restart"] == "on-failure"
    assert f"/var/lib/{service['StateDirectory']}" in service["ExecStart"]


def test_the_launcher_file_follows_rays_own_schema(launcher: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)


def test_ray_itself_accepts_the_launcher_file(launcher: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(launcher)
    validate_config(prepared)
    assert prepared["max_workers"] == launcher["available_node_types"]["gpu"]["max_workers"]


def test_the_cluster_asks_for_a_token_and_its_dashboard_stays_on_loopback(launcher: dict[str, Any]) -> None:
    assert "/home/ubuntu/.ray/auth_token" in launcher["file_mounts"]
    (head,) = [line for line in launcher["head_start_ray_commands"] if "ray start" in line]
    (worker,) = [line for line in launcher["worker_start_ray_commands"] if "ray start" in line]
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head


def test_the_nodes_install_what_was_tested(launcher: dict[str, Any]) -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = re.findall(r"torch(?:vision)?==[\d.]+", "\n".join(launcher["setup_commands"]))
    assert len(pinned) == 2
    assert set(pinned) <= set(constraints)
