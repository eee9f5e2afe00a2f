"""A job that is killed again and again, always started by the same command, and what became of it."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from jobs.checkpoints import CheckpointManager
from jobs.run_dir.jsonl import read_json
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload
from tests.integration.harness.kills import VICTIMS, find, steps, wait_until
from tests.integration.harness.runner import GRADGUARD, Sandbox, descendants

ORPHANS_GONE_S = 120
"""Ray's agents take a minute to notice that the head is gone."""
STEPS_PER_KILL = 12
WHILE_STARTING = 0.2
"""Share of the random kills that fall while the job is still starting again after the one before."""
CONTINUES = re.compile(r"continuing from (?:the checkpoint of )?step (\d+)")

SPEC: dict[str, Any] = {
    "resume": "auto",
    "scale": {
        "workers": 2,
        "max_failures": 100,
        "timeout_s": 20.0,
        "stall_timeout_s": 10.0,
        "stop_grace_s": 30.0,
    },
    "data": {"dataset": "digits", "batch_size": 64, "augment": "standard"},
    "train": {"max_steps": 96, "checkpoint_every_steps": 10},
    "faults": [
        {"kind": "nan_loss", "step": 7, "rank": 1},
        {"kind": "lr_spike", "step": 23, "factor": 10000.0},
    ],
}
"""Skips a batch, rolls back, augments, evaluates on the way; needs no restart."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One blow: to whom, after which step has been taken and how long after that, and by which signal.

    Without a step it falls ``delay_s`` after the one before, while the job is still starting again; with a
    moment, when that comes after the step:

    ``start``: the driver starts workers
    ``rollback``: one is in the journal
    ``evaluation``: one runs
    ``stop``: the driver got Ctrl-C and saves the state
    ``replacement``: the victim was killed and Ray starts again; the driver gets Ctrl-C then
    """

    victim: str
    step: int | None
    delay_s: float = 0.0
    signal: signal.Signals = signal.SIGKILL
    moment: Literal["", "start", "rollback", "evaluation", "stop", "replacement"] = ""


MOMENTS: dict[str, list[Kill]] = {
    "set-up": [Kill("worker", 0)],
    "set-up-head": [Kill("raylet", 0, moment="start")],
    "no-checkpoint": [Kill("worker", 3)],
    "rollback": [Kill("rank 0", 20, moment="rollback")],
    "evaluation": [Kill("worker", 12, moment="evaluation")],
    "twice": [Kill("worker", 12), Kill("controller", None, 0.5)],
    "stop": [Kill("worker", 12, moment="stop")],
    "stop-head": [Kill("gcs_server", 12, moment="stop")],
    "replacement": [Kill("gcs_server", 12, moment="replacement")],
    "frozen-controller": [Kill("controller", 12, signal=signal.SIGSTOP)],
    "frozen-gcs": [Kill("gcs_server", 12, signal=signal.SIGSTOP)],
    "frozen-raylet": [Kill("raylet", 12, signal=signal.SIGSTOP)],
}
"""Blows where the random ones seldom fall, each from the step on at which its moment can come."""


def of_moments(names: Sequence[str]) -> list[Kill]:
    """The blows of these moments, so far apart that each is followed by a checkpoint."""
    kills: list[Kill] = []
    last = 0
    for kill in (kill for name in names for kill in MOMENTS[name]):
        if kill.step is not None:
            kill = replace(kill, step=kill.step if not kills else max(kill.step, last + STEPS_PER_KILL))
            last = kill.step or 0
        kills.append(kill)
    return kills


def random_kills(number: int, seed: int, *, after: int = 5) -> list[Kill]:
    """That many kills of random parts of a job, at random steps from ``after`` on and moments after them."""
    chance = random.Random(seed)
    steps = sorted(chance.sample(range(after, STEPS_PER_KILL * number + after), number))
    kills = [Kill(chance.choice(VICTIMS), step, chance.uniform(0, 0.3)) for step in steps]
    for i in range(1, number):
        if chance.random() < WHILE_STARTING:
            victim = chance.choice(("worker", "driver", "controller"))
            kills[i] = Kill(victim, None, chance.uniform(0.5, 8.0))
    return kills


class ChaosRun:
    """One job under blows."""

    def __init__(self, sandbox: Sandbox, spec_file: str) -> None:
        self.sandbox, self.job = sandbox, Path(spec_file).stem
        self._command = (GRADGUARD, "train", spec_file)
        self._log = sandbox.path / f"{self.job}.out"
        self._process = self._start()
        self._family: set[psutil.Process] = set()

    def run(self, kills: Sequence[Kill]) -> list[dict[str, Any]]:
        """Deals the blows, lets the job end, and returns what followed on each."""
        rows = []
        for number, kill in enumerate(kills):
            row = self._strike(kill)
            if row is None:
                break  # the job had ended
            chained = number + 1 < len(kills) and kills[number + 1].step is None
            rows.append(row if chained else self._awaited(row))
        for row in rows:
            row.pop("at", None)
        return rows

    def finish(self) -> int:
        """Waits until the job has ended, continued where it was stopped before its kill came, and returns its
        exit code."""
        while True:
            if self._process.poll() is None:
                self._family.update(descendants(self._process))
            wait_until(lambda: False, self._process)
            result = read_json(self.sandbox.path / "runs" / self.job / "result.json")
            if (result or {}).get("status") != "stopped":
                return int(self._process.returncode)
            self._process = self._start()

    def orphans(self) -> list[str]:
        """The processes of the job that did not go with it."""
        _, left = psutil.wait_procs(list(self._family), timeout=ORPHANS_GONE_S)
        return [p.name() for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    @property
    def output(self) -> str:
        """All that was printed, by all drivers."""
        return self._log.read_text()

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("a") as log:
            return self.sandbox.start(*self._command, log=log)

    def _strike(self, kill: Kill) -> dict[str, Any] | None:
        if kill.step is not None and not wait_until(lambda: self._step() >= kill.step, self._process):
            return None
        time.sleep(kill.delay_s)  # the instant is what varies; nothing waits for it
        if kill.moment and not self._until_moment(kill.moment):
            return None
        found: list[psutil.Process] = []

        def seen() -> bool:
            victim = find(self._process, kill.victim, self.sandbox, self.job)
            found.extend([victim] if victim else [])
            return bool(found)

        if not wait_until(seen, self._process):
            return None
        self._family.update(descendants(self._process))
        row = {"victim": kill.victim, "signal": kill.signal.name, "step": self._step(), "at": time.time()}
        row["continued_before"] = len(CONTINUES.findall(self.output))
        since = len(self.output)
        found[0].send_signal(kill.signal)
        if kill.moment == "replacement":
            if not self._printed("starting Ray again", since):
                return None
            self._process.send_signal(signal.SIGINT)
        if kill.victim == "driver" or kill.moment in ("stop", "replacement"):
            self._process.wait(timeout=120)
            self._process = self._start()
        return row

    def _until_moment(self, moment: str) -> bool:
        since = len(self.output)
        if moment == "start":
            return self._printed("workers on an embedded Ray", 0)
        if moment == "rollback":
            journal = self.sandbox.path / "runs" / self.job / "incidents.jsonl"
            return wait_until(lambda: '"rolled_back"' in journal.read_text(), self._process, 0.001)
        if moment == "evaluation":
            return self._printed("phase=evaluating", since)
        if moment == "stop":
            self._process.send_signal(signal.SIGINT)
            return self._printed("stopping: ", since)
        return True

    def _printed(self, text: str, since: int) -> bool:
        """Waits until it is in the output after a place; false if the job ended first."""
        return wait_until(lambda: text in self.output[since:], self._process, 0.01)

    def _awaited(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds what followed; a hub may die without anybody continuing anything."""
        before, reached = row.pop("continued_before"), row["step"]
        if row["victim"] == "hub":
            alive = wait_until(lambda: self._step() > reached, self._process)
            return {**row, "resumed": alive, "steps_repeated": 0, "seconds": 0.0}

        def continued() -> bool:
            nonlocal reached
            from_nothing = reached == 0 and self._step() > 0
            reached = max(reached, self._step())
            return from_nothing or len(CONTINUES.findall(self.output)) > before

        if not wait_until(continued, self._process):
            return {**row, "resumed": self._process.returncode == 0, "steps_repeated": 0, "seconds": 0.0}
        found = CONTINUES.findall(self.output)
        start = int(found[-1]) if len(found) > before else 0
        wait_until(lambda: self._step() > start, self._process)
        later = [r for r in steps(self.sandbox, self.job) if r["step"] > start and r["time"] > row["at"]]
        seconds = later[0]["time"] - row["at"] if later else 0.0  # none if the last step had been taken
        return {**row, "resumed": True, "steps_repeated": max(0, reached - start), "seconds": seconds}

    def _step(self) -> int:
        rows = steps(self.sandbox, self.job)
        return rows[-1]["step"] if rows else 0


def final_weights(sandbox: Sandbox, job: str) -> dict[str, torch.Tensor]:
    """The model in the newest checkpoint of a job."""
    folder = RunDir(sandbox.path / "runs" / job)
    model = load_workload(JobSpec.load(folder.spec)).build_model()
    assert CheckpointManager(folder.checkpoints, {"model": model}).load_latest() is not None
    return model.state_dict()


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def history(sandbox: Sandbox, job: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl and incidents.jsonl, without their times and what a resume starts again.

    That is the update norm and its ratio: the copy of the weights that it is measured from is not saved.
    """
    rows = sandbox.rows(job, "metrics.jsonl") + sandbox.rows(job, "incidents.jsonl")
    return [_comparable(row) for row in rows]


def _comparable(value: Any) -> Any:
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items() if key not in _NOT_COMPARED}
    return value


_NOT_COMPARED = {"time", "step_seconds", "guard_seconds", "seconds", "job", "update_norm", "update_ratio"}
