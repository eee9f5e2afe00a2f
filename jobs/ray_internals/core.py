"""Private functions and settings of Ray's core, one function each."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services, worker
from ray.job_config import JobConfig
from ray.util.placement_group import PlacementGroup, remove_placement_group

LOOPBACK_SETTING = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
"""Environment of a head that binds to the loopback interface."""

NODE_POLL_S = 0.2
_KILLED = threading.Event()
"""Set once a head was killed: threads of Ray's core that it leaves behind can crash Python's own end."""


def draining_nodes() -> set[str]:
    """The ids of the cluster's nodes that are about to be removed. Raises what Ray raises."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def bootstrap_address(address: str) -> str:
    """``host:port`` of a cluster's head, for ``auto`` too. Raises ValueError or ConnectionError."""
    return str(services.canonicalize_bootstrap_address(address))


@contextmanager
def loopback_only() -> Iterator[None]:
    """A head started in this block binds to the loopback interface.

    Ray does so where it does not support clusters of several nodes (macOS and Windows). It reads the variable
    for that when it is imported, which is before we can set it.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def start_head(*, temp_dir: str, timeout_s: float, **options: Any) -> None:
    """``ray.init`` of a new local cluster with its session files in ``temp_dir``.

    Its node has ``timeout_s`` to register, where Ray has a constant of 30 s.
    """
    with _node_awaited(timeout_s):
        ray.init(address="local", job_config=OwnCodePath(), _temp_dir=temp_dir, **options)


@contextmanager
def _node_awaited(timeout_s: float) -> Iterator[None]:
    """In this block ``services.get_node`` waits for a node that has not registered yet and has not died."""
    before, end, earlier = services.get_node, time.monotonic() + timeout_s, _dead_raylets()

    def awaited(*arguments: Any) -> Any:
        while True:
            try:
                return before(*arguments)
            except RuntimeError as error:
                if _dead_raylets() - earlier:  # its agent was too slow; this error ends Ray's own wait
                    raise TimeoutError("the raylet died: its agent timed out") from error
                if time.monotonic() > end:
                    raise
                time.sleep(NODE_POLL_S)

    services.get_node = awaited
    try:
        yield
    finally:
        services.get_node = before


def _dead_raylets() -> set[int]:
    """The raylets that this process started and that have died since, by process id."""
    dead = set()
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if process.name() == "raylet" and process.status() == psutil.STATUS_ZOMBIE:
                dead.add(process.pid)
    return dead


class OwnCodePath(JobConfig):
    """Keeps the driver's folders from the front of the workers' ``sys.path``.

    There a ``jobs.py`` or ``guard.py`` of the user's would hide our packages. Ray leaves them out where the
    runtime environment has a working directory.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


@contextmanager
def ray_messages_to(write: Callable[[list[str]], None]) -> Iterator[None]:
    """In this block Ray's messages on dead workers and nodes go to ``write``, not to the terminal."""
    before = worker.print_to_stdstream

    def redirected(data: dict[str, Any], **_: Any) -> None:
        write(data.get("lines", []))

    worker.print_to_stdstream = redirected
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def dead_head_processes() -> list[str]:
    """Which processes of the head that this process started have died, such as ``raylet``."""
    node = worker._global_node
    return [] if node is None else sorted(kind for kind, _ in node.dead_processes())


def stopped_head_processes() -> set[str]:
    """Which processes of the head that this process started are stopped, as by SIGSTOP."""
    node, stopped = worker._global_node, set()
    for kind, processes in ({} if node is None else node.all_processes).items():
        for one in processes:
            with suppress(psutil.NoSuchProcess):
                if psutil.Process(one.process.pid).status() == psutil.STATUS_STOPPED:
                    stopped.add(kind)
    return stopped


def alive_at_head(timeout_s: float) -> bool | None:
    """Whether the head takes the node of this process for alive; None if it does not answer in time."""
    node = ray.NodeID.from_hex(ray.get_runtime_context().get_node_id())
    try:
        return bool(*worker.global_worker.gcs_client.check_alive([node], timeout=timeout_s))
    except (ray.exceptions.RayError, OSError):
        return None


def kill_head() -> None:
    """Kills the processes of the head that this process started, frozen ones too."""
    if worker._global_node is not None:
        _KILLED.set()
        worker._global_node.kill_all_processes(check_alive=False, allow_graceful=False)


def leave_if_killed(code: int) -> None:
    """Ends the process at once with this exit code if it has killed a head; all is written by then."""
    if _KILLED.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def shutdown(timeout_s: float) -> None:
    """``ray.shutdown``, which waits for ever where the raylet is frozen.

    After ``timeout_s`` the processes of the head are killed, if this process started it.
    """
    timer = threading.Timer(timeout_s, kill_head)
    timer.daemon = True
    timer.start()
    try:
        ray.shutdown()
    finally:
        timer.cancel()


def remove_placement_groups(job_id: str) -> None:
    """Frees what a job has reserved: a dead controller's workers are gone, but not their reservation."""
    from ray._raylet import PlacementGroupID

    for group_id, group in ray.util.placement_group_table().items():
        if group_id.endswith(job_id) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def on_this_node() -> dict[str, str]:
    """A label selector for the node of this process."""
    return {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
