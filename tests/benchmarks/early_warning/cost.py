"""What the warning costs in processor time: it reads numbers that the guard has anyway."""

from __future__ import annotations

from functools import partial
from time import process_time
from typing import Any

from measure import interleaved, median_ms

from early_warning.acting import Guarded
from early_warning.candidates import climbing
from early_warning.log import Log
from early_warning.trainings import Run, train

ROUNDS = 3


def table(log: Log, run: Run) -> list[dict[str, Any]]:
    """Its share of an unguarded step of ``run``, the smallest network; ``log`` is of the same run."""

    def judged() -> float:
        started = process_time()
        climbing(log, log.far)
        return (process_time() - started) / len(log.loss)

    def trained() -> float:
        started = process_time()
        made = train(run, partial(Guarded, config={"mode": "off"}))
        return (process_time() - started) / len(made.loss)

    seconds = interleaved({"judged": judged, "step": trained}, ROUNDS)
    share = median_ms(seconds["judged"]) / median_ms(seconds["step"])
    return [{"network": run.model, "share of a step": share}]
