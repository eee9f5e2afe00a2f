"""Every command and every program of the README does what the README promises, on a small data set."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from jobs import JobClient
from jobs.cluster.session import PACKAGE_ROOT
from tests.integration.harness.cluster import Cluster
from tests.integration.harness.runner import BIN, GRADGUARD, SMALL, Sandbox, read_until

README = (PACKAGE_ROOT / "README.md").read_text()
EXAMPLE = "jobs/examples/fashion.yaml"
QUICK = {"data": {"dataset": "digits", "batch_size": 64}, "scale": {"workers": 1}, "model": SMALL}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(start: str) -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.startswith(start)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A folder with our packages in it and the example made small."""
    return as_checkout(Sandbox(tmp_path_factory.mktemp("readme")), steps=70)


def as_checkout(sandbox: Sandbox, *, steps: int = 20) -> Sandbox:
    for package in ("guard", "jobs"):
        shutil.copytree(PACKAGE_ROOT / package, sandbox.path / package, dirs_exist_ok=True)
    small = sandbox.spec("fashion", train={"max_steps": steps}, **QUICK)
    (sandbox.path / small).rename(sandbox.path / EXAMPLE)
    return sandbox


def test_no_command_of_the_readme_is_forgotten_here() -> None:
    known = ("make ", "gradguard ", "ray job submit ", "curl ")
    unknown = [line for block in blocks("sh") for line in block.splitlines() if not line.startswith(known)]
    assert unknown == []
    assert len(blocks("python")) == 2


def test_the_loop_of_the_readme_trains_under_the_guard() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    inputs = torch.randn(40, 64, 8)
    loader = [(batch, (batch[:, 0] > 0).long()) for batch in inputs]
    loader[30] = (loader[30][0] * float("nan"), loader[30][1])
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.5),
        "loader": loader,
        "loss_fn": nn.CrossEntropyLoss(),
    }
    exec(blocks("python")[0], names)
    guard, report = names["guard"], names["report"]
    assert (guard.steps, guard.attempts) == (39, 40)
    assert report.loss < 0.3


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


@pytest.mark.slow
def test_make_train_and_make_test(checkout: Sandbox) -> None:
    """The two commands, through the Makefile, in the environment that runs this test."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("not in a virtual environment, which the Makefile needs")
    (Path(sys.prefix) / ".installed").touch()
    assert commands("make ") == ["make train", "make test"]
    make = ("make", "-C", str(PACKAGE_ROOT), f"VENV={sys.prefix}")
    storage = checkout.path / "made"
    spec = checkout.spec("made", storage=str(storage), train={"max_steps": 20}, **QUICK)
    trained = checkout.run(*make, "train", f"SPEC={checkout.path / spec}")
    assert trained.returncode == 0, trained.stdout
    assert str(storage / "made" / "report.html") in trained.stdout.replace("\n", "")
    tested = checkout.run(*make, "test", "ARGS=tests/test_imports.py")
    assert tested.returncode == 0, tested.stdout


@pytest.mark.slow
def test_the_commands_for_one_machine(checkout: Sandbox) -> None:
    check, train, resume, replay = commands("gradguard ")[:3] + commands("gradguard replay")
    assert checkout.run("sh", "-c", check).returncode == 0
    trained = checkout.run("sh", "-c", train)
    assert trained.returncode == 0, trained.stdout
    assert checkout.result("short")["steps"] == 60

    killed = checkout.path / "runs" / "fashion"  # the same job under its own name, as if killed at step 60
    shutil.copytree(checkout.path / "runs" / "short", killed)
    (killed / "result.json").unlink()
    resumed = checkout.run("sh", "-c", resume)
    assert resumed.returncode == 0, resumed.stdout
    assert "continuing from the checkpoint of step 60" in resumed.stdout
    assert checkout.result("fashion")["steps"] == 70

    rows = [f"{i},{2.0 + 0.01 * (i % 7) if i != 300 else 'nan'}" for i in range(400)]
    (checkout.path / "training.csv").write_text("\n".join(["step,loss", *rows]) + "\n")
    replayed = checkout.run("sh", "-c", replay)
    assert replayed.returncode == 0, replayed.stdout
    assert "300" in replayed.stdout
    assert "nonfinite" in replayed.stdout


@pytest.mark.slow
def test_the_metrics_can_be_read_while_a_job_runs(checkout: Sandbox) -> None:
    job = checkout.start(GRADGUARD, "train", EXAMPLE, "--set", "name=long", "--set", "train.max_steps=5000")
    try:
        said = read_until(job, lambda line: "phase=training" in line and "loss=" in line)
        address = re.search(r"metrics at (\S+)", said)
        assert address is not None
        (curl,) = commands("curl ")
        scraped = checkout.run("sh", "-c", curl.replace("http://127.0.0.1:9410/metrics", address[1]))
        assert 'gradguard_grad_norm{job="long"}' in scraped.stdout
    finally:
        job.send_signal(signal.SIGINT)
        job.communicate(timeout=60)


@pytest.mark.slow
def test_the_commands_for_a_cluster(cluster: Cluster) -> None:
    sandbox = as_checkout(cluster.sandbox.project("readme"))
    submit_plain, submit, listing, logs, stop = [
        line.replace("http://127.0.0.1:8265", cluster.url)
        for line in commands("ray ") + commands("gradguard ")[3:7]
    ]
    runs = cluster.sandbox.path / "gradguard" / "runs"
    plain = sandbox.run("sh", "-c", submit_plain)
    assert plain.returncode == 0, plain.stdout
    assert "fashion: succeeded" in plain.stdout
    assert (runs / "fashion" / "report.html").exists()

    as_checkout(sandbox, steps=5000)
    job_id = sandbox.run("sh", "-c", submit).stdout.strip()
    following = sandbox.start("sh", "-c", f"exec {logs.replace('JOB_ID', job_id)}")
    read_until(following, lambda line: "phase=training" in line and "loss=" in line)
    assert job_id in sandbox.run("sh", "-c", listing).stdout
    status = (GRADGUARD, "status", job_id, "--address", cluster.url)
    assert sandbox.run(*status).stdout.strip() == "running"
    assert sandbox.run("sh", "-c", stop.replace("JOB_ID", job_id)).returncode == 0
    assert JobClient(cluster.url).wait(job_id, timeout_s=60).status == "stopped"
    assert f"{job_id}: stopped" in following.communicate(timeout=60)[0]
    assert list((runs / job_id / "checkpoints").glob("step-*/manifest.json")), "the state was kept"


@pytest.mark.slow
def test_the_python_job_api(cluster: Cluster) -> None:
    sandbox = as_checkout(cluster.sandbox.project("readme"))
    program = blocks("python")[1].replace("http://127.0.0.1:8265", cluster.url)
    run: subprocess.CompletedProcess[str] = sandbox.run(str(BIN / "python"), "-c", program)
    assert run.returncode == 0, run.stdout
    assert run.stdout.strip().endswith("succeeded")
