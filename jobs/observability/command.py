"""``python -m jobs.observability.command JOB COMMAND``: passes a command to a job through the hub."""

from __future__ import annotations

import logging
import sys

import ray

from jobs.observability.hub import HUB_NAME, NAMESPACE

ANSWER_S = 10.0


def main(job: str, command: str) -> int:
    """0 if the job gets the command; else 1, with one line on why not."""
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    problem = give(job, command)
    if problem is not None:
        print(problem)
    return 1 if problem else 0


def give(job: str, command: str) -> str | None:
    """Queues a command of a job that trains now; a line on why not, if that is impossible."""
    try:
        hub = ray.get_actor(HUB_NAME, namespace=NAMESPACE)
        known = ray.get(hub.status.remote(job), timeout=ANSWER_S)
        if known["status"] is None:
            return f"{job} has not started to train: try again later"
        accepted = ray.get(hub.command.remote(job, command), timeout=ANSWER_S)
    except ValueError:
        return f"{job} has not started to train: the cluster has no metrics hub yet"
    except ray.exceptions.RayError as error:
        return f"the metrics hub of the cluster does not answer: {type(error).__name__}"
    return None if accepted else f"{job} has ended"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
