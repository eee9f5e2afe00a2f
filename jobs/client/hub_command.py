"""Passes a command to a running job on a Ray cluster of which only the dashboard's URL is known.

The hub that carries commands is an actor, out of reach of the Jobs API. So a small Ray job without resources
delivers the command on the cluster; it is deleted when it has ended.
"""

from __future__ import annotations

import secrets
import shlex
import time
from contextlib import suppress

from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.client.errors import ClientError, Conflict
from jobs.cluster.session import CODE_PACKAGES

POLL_S = 0.25
TIMEOUT_S = 120.0


def deliver(client: JobSubmissionClient, job: str, command: str) -> None:
    """Returns when the hub has the command for the job of this name.

    Raises:
        Conflict: the job does not train now.
        ClientError: the cluster did not run the delivery within two minutes.
    """
    delivery = f"{command}-{secrets.token_hex(4)}"
    client.submit_job(
        entrypoint=shlex.join(["python", "-P", "-m", "jobs.observability.command", job, command]),
        submission_id=delivery,
        runtime_env={"py_modules": CODE_PACKAGES},
    )
    status = _wait(client, delivery)
    lines = client.get_job_logs(delivery).strip().splitlines()
    with suppress(RuntimeError):
        client.delete_job(delivery)
    if status != JobStatus.SUCCEEDED:
        raise Conflict(lines[-1] if lines else f"the {command} of {job} could not be requested")


def _wait(client: JobSubmissionClient, delivery: str) -> JobStatus:
    deadline = time.monotonic() + TIMEOUT_S
    while not (status := client.get_job_status(delivery)).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(delivery)
            raise ClientError("the cluster did not pass the command on within two minutes: is it overloaded?")
        time.sleep(POLL_S)
    return status
