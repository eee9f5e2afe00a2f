"""The kills that the chaos benchmark deals: random ones, and those of certain moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.harness.chaos import (
    MOMENTS,
    SPEC,
    ChaosRun,
    final_weights,
    of_moments,
    random_kills,
    same_weights,
)
from tests.integration.harness.runner import GRADGUARD, NOISY, SMALL, noisy

AFTER_THE_LAST = 250
EVALUATIONS = "20"
"""Times that the test set is gone through, so that a kill can fall into an evaluation."""


def test_the_kills_follow_from_the_seed() -> None:
    assert random_kills(20, seed=4) == random_kills(20, seed=4)
    assert random_kills(20, seed=4) != random_kills(20, seed=5)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_weights_are_those_of_the_uninterrupted_run_whenever_death_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "harness"))
    sandbox = noisy(tmp_path)
    sandbox.environment["NOISY_EVALUATIONS"] = EVALUATIONS
    kills = of_moments(list(MOMENTS))
    train = {"max_steps": (kills[-1].step or 0) + AFTER_THE_LAST, "checkpoint_every_steps": 10}
    spec = {**SPEC, "workload": NOISY, "model": SMALL, "train": train}
    healthy = sandbox.run(GRADGUARD, "train", sandbox.spec("healthy", **spec))
    assert healthy.returncode == 0, healthy.stdout
    chaos = ChaosRun(sandbox, sandbox.spec("chaos", **spec))
    rows = chaos.run(kills)
    assert chaos.finish() == 0, chaos.output
    assert len(rows) == len(kills), chaos.output
    assert all(row["resumed"] for row in rows if "resumed" in row), rows
    assert "Traceback" not in chaos.output
    assert same_weights(final_weights(sandbox, "healthy"), final_weights(sandbox, "chaos"))
    assert chaos.orphans() == []
