"""Submission to a real Ray cluster: by ``ray job submit``, by JobClient and by ``gradguard submit``."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import psutil
import pytest

from jobs import JobClient, JobSpec
from jobs.client import JobNotFound, JobTimeout
from jobs.errors import JobError
from tests.integration.runner import BIN, GRADGUARD, Sandbox, read_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RAY = str(BIN / "ray")
SHORT = {"train": {"max_steps": 12}, "scale": {"workers": 1}}


class Cluster:
    """A head node of its own, in a sandbox of its own."""

    def __init__(self, sandbox: Sandbox, url: str) -> None:
        self.sandbox = sandbox
        self.url = url


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    sandbox = Sandbox(tmp_path_factory.mktemp("cluster"))
    sandbox.environment["RAY_AUTH_MODE"] = "disabled"
    ports = free_ports(4)
    head = sandbox.start(
        *(RAY, "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true"),
        *("--dashboard-host=127.0.0.1", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
        f"--port={ports[0]}",
        f"--dashboard-port={ports[1]}",
        f"--dashboard-agent-listen-port={ports[2]}",
        f"--ray-client-server-port={ports[3]}",
        *("--min-worker-port=20002", "--max-worker-port=29999"),
        f"--temp-dir=/tmp/gg{ports[0]}",
    )
    try:
        read_until(head, lambda line: "Ray runtime started" in line)
        url = f"http://127.0.0.1:{ports[1]}"
        wait_for_api(url)
        yield Cluster(sandbox, url)
    finally:
        end(head)


def test_ray_job_submit_ends_succeeded(cluster: Cluster) -> None:
    spec = cluster.sandbox.spec("plain", **SHORT)
    run = submit_plain(cluster, "plain", spec)
    assert run.returncode == 0, run.stdout
    assert "succeeded" in run.stdout
    assert JobClient(cluster.url).get("plain").status == "succeeded"
    assert (cluster.sandbox.path / "gradguard" / "runs" / "plain" / "report.html").exists()


def test_a_failing_job_ends_with_its_own_exit_code(cluster: Cluster) -> None:
    (cluster.sandbox.path / "wrong.yaml").write_text("optimizer: {lr: -1}\n")
    run = submit_plain(cluster, "wrong", "wrong.yaml")
    assert run.returncode == 1
    job = JobClient(cluster.url).get("wrong")
    assert (job.status, job.exit_code) == ("failed", 2)
    assert "optimizer.lr" in "".join(job.logs())


def test_a_halted_job_says_so(cluster: Cluster) -> None:
    faults = [{"kind": "nan_loss", "step": 4, "times": 100}]
    guard = {"budget": {"rollbacks": 0}}
    spec = cluster.sandbox.spec("halting", faults=faults, guard=guard, **SHORT)
    client = JobClient(cluster.url)
    job = client.submit(JobSpec.load(cluster.sandbox.path / spec)).wait(timeout_s=200)
    assert (job.status, job.exit_code) == ("halted", 3), "".join(job.logs())


def test_the_client_submits_follows_and_waits(cluster: Cluster) -> None:
    client = JobClient(cluster.url)
    job = client.submit(JobSpec.load(cluster.sandbox.path / cluster.sandbox.spec("byclient", **SHORT)))
    assert job.id.startswith("byclient-")
    with pytest.raises(JobTimeout):
        job.wait(timeout_s=0)
    followed = "".join(job.logs(follow=True))
    ended = job.wait(timeout_s=60)
    assert (ended.status, ended.exit_code) == ("succeeded", 0)
    assert "12/12" in followed
    assert job.id in [listed.id for listed in client.list()]


def test_the_command_line_submits_lists_and_stops(cluster: Cluster) -> None:
    sandbox, address = cluster.sandbox, f"--address={cluster.url}"
    spec = sandbox.spec("bycli", train={"max_steps": 5000}, scale={"workers": 1})
    job_id = sandbox.run(GRADGUARD, "submit", spec, address).stdout.strip()
    client = JobClient(cluster.url)
    for piece in client.logs(job_id, follow=True):
        if "phase=training" in piece and "loss=" in piece:
            break
    assert job_id in sandbox.run(GRADGUARD, "list", address).stdout
    assert sandbox.run(GRADGUARD, "status", job_id, address).stdout.strip() == "running"
    assert sandbox.run(GRADGUARD, "stop", job_id, address).returncode == 0
    assert client.wait(job_id, timeout_s=60).status == "stopped"
    checkpoints = sandbox.path / "gradguard" / "runs" / job_id / "checkpoints"
    assert list(checkpoints.glob("step-*/state.pt")), "the state was kept"


def test_wrong_addresses_and_ids_are_one_clear_line(cluster: Cluster) -> None:
    with pytest.raises(JobNotFound, match="there is no job nothing"):
        JobClient(cluster.url).get("nothing")
    with pytest.raises(JobError, match="no Ray cluster answers"):
        JobClient("http://127.0.0.1:9")
    run = cluster.sandbox.run(GRADGUARD, "list", "--address=http://127.0.0.1:9")
    assert run.returncode == 2
    assert "Traceback" not in run.stdout


def submit_plain(cluster: Cluster, job_id: str, spec: str) -> subprocess.CompletedProcess[str]:
    from jobs.cluster import PACKAGE_ROOT

    for package in ("guard", "jobs"):
        link = cluster.sandbox.path / package
        if not link.exists():
            link.symlink_to(PACKAGE_ROOT / package)
    command = (
        RAY,
        "job",
        "submit",
        "--address",
        cluster.url,
        "--submission-id",
        job_id,
        "--working-dir",
        ".",
    )
    return cluster.sandbox.run(*command, "--", "python", "-m", "jobs.train", spec)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def wait_for_api(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            psutil.cpu_percent(interval=0.1)
    raise AssertionError(f"no Jobs API at {url}")


def end(head: subprocess.Popen[str]) -> None:
    family = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    _, left = psutil.wait_procs([psutil.Process(head.pid), *family], timeout=45)
    for process in left:
        process.kill()
    head.communicate()
