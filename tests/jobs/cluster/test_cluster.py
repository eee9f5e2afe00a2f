"""The cluster of a job: what an embedded one exposes and leaves behind, and when a job is refused."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.cluster.session import (
    JOB_CONFIG_VAR,
    PACKAGE_ROOT,
    ClusterError,
    _temp_dir,
    ray_session,
    shortage,
    worker_runtime_env,
)
from jobs.spec.imported import MODULES

EMBEDDED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import psutil, ray
from jobs.cluster.session import ResourcesError, check_resources, ray_session
from jobs.ray_internals.core import alive_at_head, stopped_head_processes

def listening():
    '''Addresses on which this process and its descendants listen, as hexadecimal digits.'''
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[fields[9]] = fields[1].partition(":")[0]
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.environ["MARK"].encode() not in (process / "environ").read_bytes():
                continue
            for descriptor in (process / "fd").iterdir():
                target = os.readlink(descriptor)
                found.add(inodes.get(target[8:-1]) if target.startswith("socket:") else None)
        except OSError:
            continue
    return sorted(found - {None})

@ray.remote
def worker():
    import guard.record.metrics, jobs.cluster.session
    return {"file": jobs.cluster.session.__file__, "environ": dict(os.environ), "niceness": os.nice(0)}

before = dict(os.environ), signal.getsignal(signal.SIGTERM)
with ray_session(num_cpus=1.5) as info:
    seen = {"niceness": os.nice(0), "embedded": info.embedded, "cpus": info.cpus, "gpus": info.gpus}
    seen["worker"] = ray.get(worker.remote())
    seen["alive"] = [alive_at_head(60.0)]
    (gcs,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server"]
    gcs.suspend()
    seen["alive"].append(alive_at_head(1.0))
    seen["stopped"] = [sorted(stopped_head_processes())]
    gcs.resume()
    seen["alive"].append(alive_at_head(60.0))
    seen["stopped"].append(sorted(stopped_head_processes()))
    seen["listening"] = listening()
    try:
        check_resources({"CPU": 4}, workers=4)
    except ResourcesError as error:
        seen["refused"] = str(error)
    check_resources({"CPU": 2}, workers=2)
    with ray_session() as inner:
        seen["inner"] = inner.embedded, inner.address == info.address
    seen["still_connected"] = ray.is_initialized()
seen["restored"] = (dict(os.environ), signal.getsignal(signal.SIGTERM)) == before
seen["connected_after"] = ray.is_initialized()
seen["home"] = [str(path) for path in Path.home().rglob("*")]
print(json.dumps(seen))
"""

FOREIGN = """
import ray, sys
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.readline()
print(ray.cluster_resources()["CPU"], flush=True)
"""

VISITOR = """
import json, sys
sys.path.insert(0, sys.argv[1])
import ray
from jobs.cluster.session import ray_session

@ray.remote
def worker():
    import os, guard.record.metrics, jobs.cluster.session
    return jobs.cluster.session.__file__, os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"]

with ray_session(sys.argv[2] or None) as info:
    file, timeout = ray.get(worker.remote())
    print(json.dumps({"embedded": info.embedded, "address": info.address, "file": file, "timeout": timeout}))
"""

FROZEN_AT_THE_END = """
import json, sys
sys.path.insert(0, sys.argv[1])
import psutil
from jobs.cluster import session

session.END_TIMEOUT_S = 1.0
with session.ray_session(num_cpus=1):
    (raylet,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
    raylet.suspend()
print(json.dumps(raylet.is_running() and raylet.status() != psutil.STATUS_ZOMBIE))
"""

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A home and a temp dir of its own, short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="gg", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        own = {"HOME": f"{scratch}/home", "RAY_TMPDIR": scratch, "MARK": f"mark-{Path(scratch).name}"}
        Path(own["HOME"]).mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
        yield {**kept, **own}


def run(script: str, environment: Mapping[str, str], *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script, str(PACKAGE_ROOT), *arguments],
        env=environment,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def processes_with(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def embedded(environment: dict[str, str]) -> dict[str, Any]:
    """What a whole embedded session saw; the user had set one of our variables himself."""
    return run(EMBEDDED, {**environment, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "3"})


@pytest.mark.slow
class TestEmbedded:
    def test_it_has_the_cpus_asked_for_rounded_up(self, embedded: dict[str, Any]) -> None:
        assert (embedded["embedded"], embedded["cpus"], embedded["gpus"]) == (True, 2.0, 0.0)

    def test_workers_import_the_package_from_a_checkout(self, embedded: dict[str, Any]) -> None:
        assert Path(embedded["worker"]["file"]) == PACKAGE_ROOT / "jobs" / "cluster" / "session.py"

    def test_workers_have_our_settings_but_the_users_own_come_first(self, embedded: dict[str, Any]) -> None:
        environ = embedded["worker"]["environ"]
        assert environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "3"
        assert environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] == "120"
        assert environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] == "5"

    def test_a_busy_machine_takes_no_more_from_workers_than_from_others(
        self, embedded: dict[str, Any]
    ) -> None:
        assert embedded["worker"]["niceness"] == embedded["niceness"]

    def test_it_listens_on_loopback_only_and_asks_for_a_token(self, embedded: dict[str, Any]) -> None:
        assert embedded["listening"]
        assert set(embedded["listening"]) <= LOOPBACK
        assert embedded["worker"]["environ"]["RAY_AUTH_MODE"] == "token"
        assert len(embedded["worker"]["environ"]["RAY_AUTH_TOKEN"]) >= 32

    def test_nothing_is_written_into_the_home(self, embedded: dict[str, Any]) -> None:
        assert embedded["home"] == []

    def test_no_process_and_no_variable_is_left(
        self, embedded: dict[str, Any], environment: dict[str, str]
    ) -> None:
        assert embedded["restored"]
        assert not embedded["connected_after"]
        assert processes_with(environment["MARK"]) == []

    def test_a_head_that_is_frozen_gives_no_answer(self, embedded: dict[str, Any]) -> None:
        assert embedded["alive"] == [True, None, True]
        assert embedded["stopped"] == [["gcs_server"], []]

    def test_a_job_that_never_fits_is_refused(self, embedded: dict[str, Any]) -> None:
        assert embedded["refused"] == (
            "needs 4 CPUs, the cluster has 2: set scale.workers to 2 or scale.cpus_per_worker to 0.5"
        )

    def test_a_session_inside_a_session_uses_it_and_leaves_it_open(self, embedded: dict[str, Any]) -> None:
        assert embedded["inner"] == [False, True]
        assert embedded["still_connected"]


@pytest.mark.slow
def test_a_foreign_cluster_gets_our_code_and_outlives_us(environment: dict[str, str]) -> None:
    secured = {
        **environment,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "f" * 64,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-c", FOREIGN],
        env=secured,
        cwd=environment["HOME"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        by_argument = run(VISITOR, secured, address)
        by_variable = run(VISITOR, {**secured, "RAY_ADDRESS": address}, "")
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline() == "1.0\n"
    for visit in (by_argument, by_variable):
        assert (visit["embedded"], visit["address"], visit["timeout"]) == (False, address, "5")
        assert Path(visit["file"]) != PACKAGE_ROOT / "jobs" / "cluster" / "session.py"


@pytest.mark.slow
def test_a_session_ends_though_its_raylet_is_frozen(environment: dict[str, str]) -> None:
    assert run(FROZEN_AT_THE_END, environment) is False


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"{address} \(Connection refused\)"), ray_session(address):
            pass


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "localhost", "::"])
def test_an_address_of_another_kind_is_refused_with_what_to_do(address: str) -> None:
    with pytest.raises(ClusterError, match=r"omit it|ray status"), ray_session(address):
        pass
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("needed", "workers", "nodes", "said"),
    [
        ({"CPU": 2.0}, 2, [{"CPU": 2.0}], None),
        ({"CPU": 2.0}, 4, [{"CPU": 2.0}], None),
        ({"CPU": 0.3}, 3, [{"CPU": 0.3}], None),
        ({"CPU": 4.0, "GPU": 0.0}, 4, [{"CPU": 2.0}, {"CPU": 2.0}], None),
        (
            {"CPU": 4.0},
            4,
            [{"CPU": 2.0}],
            "needs 4 CPUs, the cluster has 2: set scale.workers to 2 or scale.cpus_per_worker to 0.5",
        ),
        ({"CPU": 3.0}, 1, [{"CPU": 2.0}], "needs 3 CPUs, the cluster has 2: set scale.cpus_per_worker to 2"),
        (
            {"CPU": 6.0},
            2,
            [{"CPU": 4.0}, {"CPU": 2.0}],
            "needs 3 CPUs for each of 2 workers, the cluster's nodes have room for 1: "
            "set scale.workers to 1 or scale.cpus_per_worker to 2",
        ),
        (
            {"CPU": 6.0},
            2,
            [{"CPU": 2.0}] * 4,
            "needs 3 CPUs for each of 2 workers, the cluster's nodes have room for 0: "
            "set scale.cpus_per_worker to 2",
        ),
        (
            {"CPU": 1.0, "GPU": 1.0},
            1,
            [{"CPU": 2.0}],
            "needs 1 GPU, the cluster has 0: set scale.device to cpu",
        ),
        (
            {"GPU": 4.0},
            4,
            [{"CPU": 8.0, "GPU": 2.0}],
            "needs 4 GPUs, the cluster has 2: set scale.workers to 2 or scale.device to cpu",
        ),
        ({"TPU": 4.0}, 4, [{"CPU": 8.0}], "needs 4 TPU, the cluster has 0: join a cluster that has TPU"),
    ],
)
def test_a_shortage_names_what_is_available_and_what_to_set(
    needed: dict[str, float], workers: int, nodes: list[dict[str, float]], said: str | None
) -> None:
    assert shortage(needed, workers, nodes) == said


def test_settings_that_follow_the_advice_fit() -> None:
    assert shortage({"CPU": 2.0}, 2, [{"CPU": 2.0}]) is None
    assert shortage({"CPU": 4 * 0.5}, 4, [{"CPU": 2.0}]) is None
    assert shortage({"CPU": 2 * 2.0}, 2, [{"CPU": 2.0}] * 4) is None


class TestRuntimeEnv:
    @pytest.fixture(autouse=True)
    def without_folders(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("PYTHONPATH", MODULES):
            monkeypatch.delenv(name, raising=False)

    def test_outside_a_ray_job_it_ships_our_packages_and_settings(self) -> None:
        env = worker_runtime_env(None)
        assert env["py_modules"] == [str(PACKAGE_ROOT / "guard"), str(PACKAGE_ROOT / "jobs")]
        assert env["env_vars"] == {
            "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
            MODULES: str(Path.cwd()),
        }

    @pytest.mark.parametrize(
        ("field", "path"), [("working_dir", {}), ("py_modules", {MODULES: str(Path.cwd())})]
    )
    def test_what_a_submitted_job_sets_itself_is_not_set_again(
        self, field: str, path: dict[str, str]
    ) -> None:
        submitted = {field: "gcs://x.zip", "env_vars": {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "9"}}
        assert worker_runtime_env(json.dumps({"runtime_env": submitted})) == {"env_vars": path}

    def test_a_submitted_job_without_an_environment_gets_all_of_ours(self) -> None:
        assert worker_runtime_env(json.dumps({"runtime_env": None})) == worker_runtime_env(None)

    def test_a_value_from_the_users_shell_is_passed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "7")
        assert worker_runtime_env(None)["env_vars"]["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] == "7"

    def test_the_users_own_search_path_is_passed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", "/shared/libraries")
        assert worker_runtime_env(None)["env_vars"]["PYTHONPATH"] == "/shared/libraries"

    def test_the_variable_is_the_one_that_ray_reads(self) -> None:
        from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

        assert JOB_CONFIG_VAR == RAY_JOB_CONFIG_JSON_ENV_VAR


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/tmp/ray"),
        ({"TMPDIR": ""}, "/tmp/ray"),
        ({"TMPDIR": "t"}, "/var/t/ray"),
        ({"TMPDIR": "/scratch"}, "/scratch/ray"),
        ({"TMPDIR": "/scratch", "RAY_TMPDIR": "/local"}, "/local/ray"),
        ({"TMPDIR": "/" + "t" * 60}, "/tmp/ray"),
        ({"TMPDIR": "/données"}, "/tmp/ray"),
    ],
)
def test_the_folder_of_the_session_is_one_in_which_ray_starts(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray takes an empty or a relative one as it is, and its processes look for it elsewhere; it knows only
    ASCII.
    """
    monkeypatch.chdir("/var")
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _temp_dir() == folder
