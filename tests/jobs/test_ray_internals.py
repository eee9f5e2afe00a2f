"""What we use of Ray beyond its public API is there and does what we take it for. Seen in Ray 2.60.0."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private import ray_constants, services, worker
from ray.job_config import JobConfig
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, FixedScalingPolicy
from ray.train.v2._internal.util import ObjectRefWrapper
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from jobs.ray_internals import core, messages, train

SEEN = f"seen in Ray 2.60.0, this is {ray.__version__}: see jobs/ray_internals"


def test_an_address_of_another_machine_is_left_as_it_is() -> None:
    assert core.bootstrap_address("192.0.2.77:6379") == "192.0.2.77:6379", SEEN


def test_a_head_binds_to_loopback_in_the_block_only() -> None:
    before = ray_constants.ENABLE_RAY_CLUSTER
    with core.loopback_only():
        assert ray_constants.ENABLE_RAY_CLUSTER is False, SEEN
    assert ray_constants.ENABLE_RAY_CLUSTER is before
    assert core.LOOPBACK_SETTING == {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}, SEEN


def test_the_drivers_folders_are_kept_from_the_workers() -> None:
    assert JobConfig()._runtime_env_has_working_dir() is False, SEEN
    assert core.OwnCodePath()._runtime_env_has_working_dir() is True
    source = inspect.getsource(worker.connect)
    assert source.count("job_config._runtime_env_has_working_dir()") == 2, SEEN


def test_rays_own_messages_are_redirected_in_the_block_only() -> None:
    lines: list[str] = []
    before = worker.print_to_stdstream
    assert {"data"} <= set(inspect.signature(before).parameters), SEEN
    with core.ray_messages_to(lines.extend):
        worker.print_to_stdstream({"lines": ["a worker died"]}, ignore_prefix=False)
    assert lines == ["a worker died"]
    assert worker.print_to_stdstream is before


@pytest.mark.timeout(60)
def test_a_raylet_that_dies_while_it_starts_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def registered(address: str, node: str) -> None:
        raise RuntimeError("there is no such node")

    monkeypatch.setattr(services, "get_node", registered)
    raylet = shutil.copy("/bin/true", tmp_path / "raylet")
    earlier = subprocess.Popen([raylet])
    os.waitid(os.P_PID, earlier.pid, os.WEXITED | os.WNOWAIT)
    with core._node_awaited(timeout_s=0), pytest.raises(RuntimeError, match="no such node"):
        services.get_node("address", "node")
    with core._node_awaited(timeout_s=1e9):
        dies = subprocess.Popen([raylet])
        with pytest.raises(TimeoutError) as ended:
            services.get_node("address", "node")
    assert messages.is_slow_start(str(ended.value)), "so it is tried again"
    assert services.get_node is registered
    assert (earlier.wait(), dies.wait()) == (0, 0)


def test_without_a_head_of_our_own_none_of_its_processes_is_dead() -> None:
    assert core.dead_head_processes() == [], SEEN


def test_the_policies_override_what_ray_train_calls() -> None:
    for name in ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request"):
        assert name in vars(train.LocalScalingPolicy)
        assert hasattr(FixedScalingPolicy, name), SEEN
    for name in ("_count_possible_workers", "make_decision_for_running_worker_group"):
        assert name in vars(train.CustomElasticScalingPolicy)
        assert hasattr(ElasticScalingPolicy, name), SEEN


def test_the_elastic_policy_asks_how_many_workers_may_run() -> None:
    config = ScalingConfig(num_workers=(1, 8), resources_per_worker={"CPU": 1})
    policy = train.CustomElasticScalingPolicy(config, lambda reserved, _, count: count(reserved) - 1)
    assert policy._count_possible_workers({"node": {"CPU": 3.0}}) == 2, SEEN


def test_the_trainer_overrides_what_ray_train_calls() -> None:
    for name in ("_create_default_callbacks", "fit"):
        assert name in vars(train.InterruptibleTrainer)
        assert hasattr(TorchTrainer, name), SEEN
    assert not hasattr(TorchTrainer, "_wait"), "the name is ours"
    assert {"get"} == {n for n in vars(ObjectRefWrapper) if not n.startswith("_")} <= {*dir(train.SentAlong)}
    passed = inspect.getsource(DataParallelTrainer.fit) + inspect.getsource(train.InterruptibleTrainer.fit)
    needed = inspect.signature(TrainController.__init__).parameters.keys() - {"self"}
    assert all(passed.count(f"{name}=") == 2 for name in needed), SEEN


def test_the_wording_of_rays_errors_is_known() -> None:
    source = Path(ray.__file__).parent
    job_head = source / "dashboard" / "modules" / "job" / "job_head.py"
    worker_group = source / "train" / "v2" / "_internal" / "execution" / "worker_group" / "worker_group.py"
    assert messages.is_agent_missing(job_head.read_text()), SEEN
    assert messages.is_health_check_timeout(worker_group.read_text()), SEEN
    killed = "Task was killed due to the node running low on memory"
    assert messages.is_out_of_memory(killed)
    assert not messages.is_out_of_memory("the worker process died")


ON_A_CLUSTER = """
import ray
from jobs.cluster.session import ray_session
from jobs.ray_internals import core

with ray_session(num_cpus=1):
    assert core.draining_nodes() == set()
    assert list(core.on_this_node().values()) == [ray.get_runtime_context().get_node_id()]
    assert core.dead_head_processes() == []
    group = ray.util.placement_group([{"CPU": 1}])
    ray.get(group.ready())
    core.remove_placement_groups(ray.get_runtime_context().get_job_id())
    assert [g["state"] for g in ray.util.placement_group_table().values()] == ["REMOVED"]
"""

WITHOUT_A_RAYLET = """
import threading
import psutil
from ray.train import FailureConfig, RunConfig, ScalingConfig
from jobs.cluster.session import ray_session
from jobs.ray_internals import train

with ray_session(num_cpus=1):
    raylet = next(p for p in psutil.Process().children() if p.name() == "raylet")
    raylet.kill()
    raylet.wait()
    abandon, scaling = threading.Event(), ScalingConfig(num_workers=1)
    threading.Timer(1.0, abandon.set).start()
    trainer = train.InterruptibleTrainer(
        lambda: None,
        abandon=abandon,
        scaling_policy=train.LocalScalingPolicy(scaling),
        can_retry=lambda error: False,
        silent_s=60.0,
        scaling_config=scaling,
        run_config=RunConfig(failure_config=FailureConfig()),
    )
    try:
        trainer.fit()
    except train.TrainingAbandoned:
        print("abandoned")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "says"), [(ON_A_CLUSTER, ""), (WITHOUT_A_RAYLET, "abandoned")], ids=["cluster", "no raylet"]
)
def test_on_a_cluster_our_calls_do_what_they_say(tmp_path: Path, program: str, says: str) -> None:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stderr + SEEN
    assert says in run.stdout, run.stderr + SEEN
