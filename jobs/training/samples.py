"""Text samples of a trained language model, in the job's folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from jobs.run_dir.jsonl import write_text_atomic
from jobs.run_dir.paths import SAMPLES, RunDir

if TYPE_CHECKING:
    from jobs.training.run import Run

logger = logging.getLogger(__name__)


def write_samples(run: Run) -> str | None:
    """Generates samples, if the workload has ``samples``; rank 0 writes them beside the result.

    Call it after the last collective: the other ranks do not wait, unless the model is divided over them,
    when all of them generate the same. A failure does not fail the training.

    Returns:
        The name of the file; None without samples.
    """
    make = getattr(run.data.workload, "samples", None)
    first = run.world.rank == 0
    if make is None or not (first or run.model.divided):
        return None
    try:
        text = as_text(make(run.model.evaluated, run.world.device))
        if not first:
            return None
        write_text_atomic(RunDir(run.spec.job_dir).path / SAMPLES, text)
    except Exception as error:  # as above
        run.progress.event("warning", f"no samples: {type(error).__name__}: {error}")
        logger.warning("no samples", exc_info=error)
        return None
    return SAMPLES


def as_text(samples: list[tuple[str, str]]) -> str:
    """Prompts and their continuations."""
    rule = f"\n{'-' * 80}\n"
    return rule.join(f"prompt: {prompt!r}\n\n{answer}" for prompt, answer in samples) + "\n"
