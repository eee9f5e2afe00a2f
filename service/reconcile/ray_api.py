"""Ray, as the service uses it: the Jobs API and the free resources, each call with a timeout."""

import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.job_submission import JobDetails, JobSubmissionClient, JobType

from jobs.client.hub_command import deliver
from jobs.client.submission import MARK, SUPERVISED, entrypoint, runtime_env
from jobs.ray_internals.messages import is_agent_missing
from jobs.spec.job_spec import JobSpec

TIMEOUT_S = (5.0, 60.0)
_REQUIRES_TOKEN = "the Ray cluster at {} requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"


class RayUnavailable(ConnectionError):
    """Ray does not answer."""


class RayRefused(RuntimeError):
    """Ray refused this submission for good."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The resources of each node, and how much is in use in total."""

    nodes: list[dict[str, float]]
    used: dict[str, float]

    def total(self, resource: str) -> float:
        return sum(node.get(resource, 0.0) for node in self.nodes)


@dataclass(frozen=True, slots=True)
class RaySubmission:
    """One attempt of a job, as it is submitted to Ray."""

    job_id: str
    submission_id: str
    name: str
    spec: JobSpec
    env: dict[str, str]
    package: bytes | None
    resume: bool


class _Client(JobSubmissionClient):
    """Ray's client with timeouts; the original waits forever."""

    def _do_request(self, method: str, endpoint: str, **request: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": TIMEOUT_S, **request})

    def ask(self, endpoint: str) -> dict[str, Any]:
        """The data of one of the dashboard's documents."""
        response = self._do_request("GET", endpoint)
        if response.status_code != 200:
            raise RuntimeError(f"{endpoint}: {response.status_code}")
        return response.json()["data"]


class RayApi:
    """The cluster behind the URL of a dashboard; it may be temporarily unavailable."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._known: _Client | None = None

    def jobs(self) -> dict[str, JobDetails]:
        """All submissions that Ray knows, by id."""
        found = self._call(lambda client: client.list_jobs())
        return {d.submission_id: d for d in found if d.type == JobType.SUBMISSION and d.submission_id}

    def job(self, submission_id: str) -> JobDetails | None:
        """One submission; None if Ray does not know it."""
        try:
            return self._call(lambda client: client.get_job_info(submission_id))
        except RuntimeError as error:
            if "does not exist" in str(error):
                return None
            raise RayUnavailable(str(error)) from error

    def submit(self, submission: RaySubmission) -> None:
        """Submits a job; the same id twice is the same job.

        Raises:
            RayRefused: Ray will never run it.
        """
        try:
            self._submit(submission)
        except RuntimeError as error:
            if "already exists" in str(error) or self.job(submission.submission_id) is not None:
                return
            if is_agent_missing(str(error)):
                raise RayUnavailable("the cluster has no node that runs jobs yet") from error
            raise RayRefused(str(error).strip().rpartition("\n")[2][:300]) from error

    def stop(self, submission_id: str) -> None:
        """Asks a job to save its state and end."""
        self._call(lambda client: client.stop_job(submission_id))

    def checkpoint(self, job: str) -> None:
        """Asks a running job to save a checkpoint. Raises Conflict if it does not train now."""
        self._call(lambda client: deliver(client, job, "checkpoint"))

    def forget(self, submission_id: str) -> None:
        """Deletes an ended job at Ray."""
        self._call(lambda client: client.delete_job(submission_id))

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """The output of a job, from its start to its end."""
        return self._client().tail_job_logs(submission_id)

    def capacity(self) -> Capacity:
        """The resources of the nodes that are alive. Ray reports what is in use some seconds late."""
        listed = self._call(lambda client: client.ask("/api/v0/nodes?detail=1"))["result"]["result"]
        nodes = [dict(node["resources_total"]) for node in listed if node["state"] == "ALIVE"]
        status = self._call(lambda client: client.ask("/api/cluster_status")).get("clusterStatus") or {}
        usage = (status.get("loadMetricsReport") or {}).get("usage") or {}
        return Capacity(nodes, {name: float(used) for name, (used, _) in usage.items()})

    def _submit(self, submission: RaySubmission) -> None:
        with tempfile.TemporaryDirectory(prefix="gradguard-") as folder:
            archive = None
            if submission.package is not None:
                archive = Path(folder) / "working_dir.zip"
                archive.write_bytes(submission.package)
            environment = runtime_env(submission.spec, working_dir=archive, env=submission.env)
            self._call(
                lambda client: client.submit_job(
                    entrypoint=entrypoint(resume=submission.resume),
                    submission_id=submission.submission_id,
                    metadata={MARK: "job", SUPERVISED: submission.job_id, "name": submission.name},
                    runtime_env=environment,
                )
            )

    def _call(self, ask: Any) -> Any:
        try:
            return ask(self._client())
        except ray.exceptions.AuthenticationError as error:
            self._known = None
            raise RayUnavailable(_REQUIRES_TOKEN.format(self.address)) from error
        except OSError as error:  # also what requests raises
            self._known = None
            raise RayUnavailable(f"the Ray cluster at {self.address} does not answer") from error

    def _client(self) -> _Client:
        if self._known is None:
            try:
                self._known = _Client(self.address)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise RayUnavailable(f"the Ray cluster at {self.address} does not answer") from error
        return self._known
