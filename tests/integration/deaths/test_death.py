"""Death in every form: the job continues to the bit, or ends with the cause on one line; no orphans."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness.chaos import (
    SPEC,
    ChaosRun,
    Kill,
    final_weights,
    history,
    random_kills,
    same_weights,
)
from tests.integration.harness.kills import VICTIMS
from tests.integration.harness.runner import GRADGUARD, NOISY, SMALL, Sandbox, noisy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEED = 204
"""Of three random kills that fall on those parts of the job which the named blows leave out."""
BLOWS = [
    Kill("worker", 12),
    Kill("hub", 17),
    Kill("controller", 22),
    Kill("worker", 36, signal=signal.SIGSTOP),
    Kill("driver", 52),
    *random_kills(3, SEED, after=58),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, ChaosRun, list[dict[str, Any]]]:
    """One job uninterrupted, and the same under blows."""
    sandbox = noisy(tmp_path_factory.mktemp("killed"))
    spec = {**SPEC, "workload": NOISY, "model": SMALL}
    healthy = sandbox.run(GRADGUARD, "train", sandbox.spec("healthy", **spec))
    assert healthy.returncode == 0, healthy.stdout
    chaos = ChaosRun(sandbox, sandbox.spec("chaos", **spec))
    rows = chaos.run(BLOWS)
    assert chaos.finish() == 0, chaos.output
    return sandbox, chaos, rows


def test_the_job_survives_every_death(killed: tuple) -> None:
    sandbox, chaos, rows = killed
    assert {row["victim"] for row in rows} == set(VICTIMS)
    assert len(rows) == len(BLOWS), chaos.output
    assert all(row["resumed"] for row in rows if "resumed" in row), rows
    assert sandbox.result("chaos")["status"] == "succeeded"
    assert chaos.orphans() == []


def test_the_weights_are_those_of_the_uninterrupted_run(
    killed: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "harness"))
    sandbox = killed[0]
    assert same_weights(final_weights(sandbox, "healthy"), final_weights(sandbox, "chaos"))


def test_every_step_incident_and_evaluation_is_there_once_and_alike(killed: tuple) -> None:
    sandbox = killed[0]
    healthy, chaos = history(sandbox, "healthy"), history(sandbox, "chaos")
    assert len(healthy) == len(chaos)
    assert healthy == chaos
    one, other = sandbox.result("healthy"), sandbox.result("chaos")
    totals = ("steps", "attempts", "metrics", "anomalies", "skips", "rollbacks", "clips", "steps_lost")
    assert {key: one[key] for key in totals} == {key: other[key] for key in totals}
    assert one["rollbacks"] == 1
    assert one["skips"] >= 1


def test_each_death_is_reported_in_one_line_with_details_in_the_log(killed: tuple) -> None:
    _, chaos, _ = killed
    assert "rank 0: the worker process died" in chaos.output
    assert "rank 1: the worker process died" in chaos.output
    assert "Ray's raylet died: starting Ray again" in chaos.output
    assert "Ray's gcs_server died: starting Ray again" in chaos.output
    assert "the training controller died: starting another one" in chaos.output
    assert "Traceback" not in chaos.output
    assert "ActorDiedError" in (chaos.sandbox.path / "runs" / "chaos" / "train.log").read_text()


def test_a_finished_job_is_not_run_twice(killed: tuple) -> None:
    sandbox = killed[0]
    before = sandbox.result("chaos")
    again = sandbox.run(GRADGUARD, "train", "chaos.yaml")
    assert again.returncode == 0
    assert "has finished already" in again.stdout
    assert sandbox.result("chaos") == before
