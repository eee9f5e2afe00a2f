"""The Ray cluster a job runs on: an existing one, or an embedded one that ends with the job.

An embedded cluster listens on the loopback interface only, requires a token that is never written to disk,
and leaves no process behind. An existing cluster is left unchanged.
"""

import json
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray

from jobs.ray_internals.core import (
    LOOPBACK_SETTING,
    OwnCodePath,
    bootstrap_address,
    loopback_only,
    shutdown,
    start_head,
)
from jobs.ray_internals.messages import is_slow_start
from jobs.spec.imported import MODULES, searched

logger = logging.getLogger(__name__)

# Ray Train's defaults: a dead worker is noticed after up to 2 s, a rank that never reports is waited for
# forever, and a process group that hangs has 30 s to end.
TRAIN_DEFAULTS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "120"}
# Read by Ray's controller actor, which does not inherit the environment of the driver.
WORKER_DEFAULTS = {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5"}
# Ray starts its workers at 15, where any other process that computes takes 97 % of a core from them: right on
# a shared node, wrong on a machine whose user runs this job.
NICENESS = {"RAY_worker_niceness": "0"}

# Left in the environment by `ray.init`.
SET_BY_RAY = ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "PYTHONBREAKPOINT")
JOB_CONFIG_VAR = "RAY_JOB_CONFIG_JSON_ENV_VAR"
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
CODE_PACKAGES = [str(PACKAGE_ROOT / package) for package in ("guard", "jobs")]
# A unix socket's path has at most 107 bytes, 103 on macOS; Ray's session and socket names take up to 66.
LONGEST_TEMP_DIR = 37
CONNECT_TIMEOUT_S = 10.0
START_TIMEOUT_S, START_TRIES = 60.0, 2
END_TIMEOUT_S = 30.0


class ClusterError(RuntimeError):
    """The cluster cannot be reached or used; the text names what to set."""


class ResourcesError(ClusterError):
    """The job asks for more than the cluster will ever have."""


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """The cluster this process is connected to."""

    embedded: bool
    address: str
    cpus: float
    gpus: float


@contextmanager
def ray_session(
    address: str | None = None,
    num_cpus: float | None = None,
    *,
    train_defaults: Mapping[str, str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[ClusterInfo]:
    """Connect to Ray for the length of the block.

    In this order: an open connection of this process (left open afterwards), `address`, the address in
    `RAY_ADDRESS` (`ray job submit` sets it), a new embedded cluster with `num_cpus` CPUs (default: those of
    this machine), which has `start_timeout_s` to start. `train_defaults` are settings of Ray Train beyond
    ours. Environment variables that the user has set are never replaced, and all are restored at the end.

    Raises:
        ClusterError: no cluster answers at the address, or it is of a kind that training cannot use.
    """
    with ExitStack() as stack:
        stack.enter_context(_environment({**TRAIN_DEFAULTS, **(train_defaults or {})}))
        if ray.is_initialized():
            yield _info(embedded=False)
            return
        address = _usable_address(address or os.environ.get("RAY_ADDRESS"))
        stack.enter_context(_sigterm_handler_kept())
        if address is None:
            # Where the workers import from: our packages first, the user's modules after all others.
            folders = filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")])
            paths = {"PYTHONPATH": os.pathsep.join(folders), MODULES: os.pathsep.join(searched())}
            stack.enter_context(_environment(_embedded_defaults(), replaced=paths))
        stack.callback(lambda: shutdown(END_TIMEOUT_S))
        if address is None:
            with _hangup_ignored():
                _start(num_cpus, start_timeout_s)
        else:
            _connect(address)
        yield _info(embedded=address is None)


def check_resources(needed: Mapping[str, float], *, workers: int = 1) -> None:
    """Refuses a job that the connected cluster can never run: Ray would wait forever, without an error.

    `needed` has the totals by Ray's resource name, such as `{"CPU": 4, "GPU": 2}`, of `workers` equal parts.
    The job waits for resources that are merely in use by others.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if problem := shortage(needed, workers, nodes):
        raise ResourcesError(problem)


def shortage(needed: Mapping[str, float], workers: int, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What is missing on `nodes` and what to set instead, in one line; `None` if the workers fit."""
    for resource, total in needed.items():
        have = [node.get(resource, 0.0) for node in nodes]
        each = total / workers
        fit = _room(each, have) if each else workers
        if total > sum(have) + 1e-9:
            seen = f"needs {_amount(total, resource)}, the cluster has {sum(have):g}"
        elif fit < workers:
            asked = f"{_amount(each, resource)} for each of {workers} workers"
            seen = f"needs {asked}, the cluster's nodes have room for {fit}"
        else:
            continue
        return f"{seen}: {_advice(resource, fit, workers, have)}"
    return None


def _advice(resource: str, fit: int, workers: int, have: Sequence[float]) -> str:
    ways = [f"scale.workers to {fit}"] if 0 < fit < workers else []
    if resource == "GPU":
        ways.append("scale.device to cpu")
    elif resource == "CPU" and any(have):
        ways.append(f"scale.cpus_per_worker to {_largest_share(workers, have):g}")
    return f"set {' or '.join(ways)}" if ways else f"join a cluster that has {resource}"


def _room(each: float, have: Sequence[float]) -> int:
    return sum(math.floor(amount / each + 1e-9) for amount in have)


def _largest_share(workers: int, have: Sequence[float]) -> float:
    """The most that each worker can have if all are to run, to two decimals."""
    shares = (amount / parts for amount in have if amount for parts in range(1, workers + 1))
    return math.floor(100 * max(share for share in shares if _room(share, have) >= workers)) / 100


def _amount(number: float, resource: str) -> str:
    plural = "" if number == 1 or resource not in ("CPU", "GPU") else "s"
    return f"{number:g} {resource}{plural}"


def _info(*, embedded: bool) -> ClusterInfo:
    resources = ray.cluster_resources()
    return ClusterInfo(
        embedded=embedded,
        address=ray.get_runtime_context().gcs_address,
        cpus=float(resources.get("CPU", 0)),
        gpus=float(resources.get("GPU", 0)),
    )


def _usable_address(address: str | None) -> str | None:
    if address and "://" in address:
        raise ClusterError(
            f"{address} is not the host:port of a Ray cluster: omit it (and unset RAY_ADDRESS) to train "
            "on this machine, or run `ray job submit --address URL -- python -m jobs.train SPEC`"
        )
    return None if address in (None, "", "local") else address


def _start(num_cpus: float | None, timeout_s: float) -> None:
    """Starts a head; one that does not start in time is tried again with twice the time."""
    for number in range(1, START_TRIES + 1):
        try:
            with loopback_only():
                start_head(
                    temp_dir=_temp_dir(),
                    timeout_s=number * timeout_s,
                    num_cpus=None if num_cpus is None else math.ceil(num_cpus),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            return
        except Exception as error:
            shutdown(END_TIMEOUT_S)  # what has started of it
            slow, why = is_slow_start(str(error)), str(error).strip().partition("\n")[0].rstrip(".")
            if slow and number < START_TRIES:
                logger.warning("Ray did not start in time (%s): trying again with more time", why)
                continue
            raise ClusterError(
                f"Ray does not start on this machine ({why}): a very busy machine or one out of memory is a "
                "reason: set scale.start_timeout_s higher; see Ray's own log in /tmp/ray/session_latest/logs"
            ) from error


def _connect(address: str) -> None:
    try:  # Ray itself would try forever
        host, _, port = bootstrap_address(address).rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise _unusable(address, getattr(error, "strerror", None) or str(error)) from error
    try:
        ray.init(
            address=address,
            job_config=OwnCodePath(),
            runtime_env=worker_runtime_env(os.environ.get(JOB_CONFIG_VAR)),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"the Ray cluster at {address} asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _unusable(address, str(error)) from error


def _unusable(address: str, why: str) -> ClusterError:
    why = why.strip().partition("\n")[0].rstrip(".")
    return ClusterError(
        f"no Ray cluster can be used at {address} ({why}): `ray status` on its head node shows the address"
    )


def worker_runtime_env(job_config: str | None) -> dict[str, Any]:
    """Our packages and settings for the workers, without those that the submitted job's environment already
    sets (Ray refuses to merge two values of one field).

    ``GRADGUARD_MODULES`` has the folders for a workload of the user's.
    """
    submitted = (json.loads(job_config).get("runtime_env") or {}) if job_config else {}
    taken = submitted.get("env_vars") or {}
    settings = {name: os.environ.get(name, value) for name, value in WORKER_DEFAULTS.items()}
    if "working_dir" not in submitted:
        settings[MODULES] = os.pathsep.join(searched())
        if "PYTHONPATH" in os.environ:
            settings["PYTHONPATH"] = os.environ["PYTHONPATH"]
    own: dict[str, Any] = {"env_vars": {name: settings[name] for name in settings.keys() - taken.keys()}}
    if not submitted.keys() & {"working_dir", "py_modules"}:
        own["py_modules"] = CODE_PACKAGES
    return own


def _embedded_defaults() -> dict[str, str]:
    """What every process of an embedded cluster inherits."""
    variables = {
        **WORKER_DEFAULTS,
        **NICENESS,
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        **LOOPBACK_SETTING,
    }
    if not (Path.home() / ".ray" / "auth_token").exists() and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        variables["RAY_AUTH_TOKEN"] = _token()
    return variables


@cache
def _token() -> str:
    """One a process: Ray keeps the first token that it finds. Without one it would write a token into the
    user's home, since a local cluster requires one."""
    return secrets.token_hex(32)


@contextmanager
def _environment(defaults: Mapping[str, str], *, replaced: Mapping[str, str] | None = None) -> Iterator[None]:
    """Set the `defaults` that the user has not set, and `replaced`; undo both at the end."""
    before = {name: os.environ.get(name) for name in {*defaults, *(replaced or {}), *SET_BY_RAY}}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ.update(replaced or {})
    try:
        yield
    finally:
        for name, old in before.items():
            os.environ.pop(name, None)
            if old is not None:
                os.environ[name] = old


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM and does not restore it."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _hangup_ignored() -> Iterator[None]:
    """What is started in this block ignores SIGHUP: a terminal that closes sends it to all processes, and the
    workers are needed to save the state."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, handler)


def _temp_dir() -> str:
    """Where Ray chooses too (from RAY_TMPDIR or TMPDIR), unless its sockets' paths would be too long, or have
    letters beyond ASCII; as an absolute path. Ray starts with no other.
    """
    root = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp").absolute()
    if len(str(root / "ray")) <= LONGEST_TEMP_DIR and str(root).isascii():
        return str(root / "ray")
    what = "too long for Ray's sockets" if str(root).isascii() else "not ASCII, which Ray needs"
    logger.warning("%s is %s; its session files go to /tmp/ray", root, what)
    return "/tmp/ray"
