"""A job under random kills: how often it recovers, at what cost, and whether its weights are the same.

``python tests/benchmarks/bench_chaos.py --kills 20 --seed 0``
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "integration" / "harness")]

from measure import progress, publish

from tests.integration.harness.chaos import (
    MOMENTS,
    SPEC,
    STEPS_PER_KILL,
    ChaosRun,
    Kill,
    final_weights,
    of_moments,
    random_kills,
    same_weights,
)
from tests.integration.harness.runner import GRADGUARD, NOISY, SMALL, noisy

AFTER_THE_LAST = 100
"""Remaining steps: workers train on until a dead Ray head is detected."""
UNTIL_GIVEN_UP, PAUSE_S = 350, 0.5
"""The same, until frozen ones are given up, and how much longer each step takes then: it trains on."""
LONG = "20"
"""Times that the test set is gone through, so that a kill can fall into an evaluation."""
LAST_WORDS = 40
"""Lines of the job's output that are shown if it did not end well."""


def chaos(kills: Sequence[Kill], folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One job uninterrupted and one under the kills.

    Returns:
        What followed on each kill, and the sums: resumed, steps repeated, median seconds to the first new
        step, orphans, and whether the final weights are equal to the bit.
    """
    folder.mkdir(exist_ok=True)
    sandbox = noisy(folder)
    sandbox.environment["NOISY_EVALUATIONS"] = (
        LONG if any(kill.moment == "evaluation" for kill in kills) else "1"
    )
    last = max([STEPS_PER_KILL * len(kills), *(kill.step or 0 for kill in kills)])
    freezes = any(kill.signal == signal.SIGSTOP for kill in kills)
    train = {
        "max_steps": last + (UNTIL_GIVEN_UP if freezes else AFTER_THE_LAST),
        "checkpoint_every_steps": 10,
    }
    spec = {**SPEC, "workload": NOISY, "model": SMALL, "train": train}
    progress("the job without kills")
    healthy = sandbox.run(GRADGUARD, "train", sandbox.spec("healthy", **spec))
    if healthy.returncode:
        raise RuntimeError(healthy.stdout)
    progress(f"the same job under {len(kills)} kills")
    slower = {"options": {"pause_s": PAUSE_S}} if freezes else {}
    run = ChaosRun(sandbox, sandbox.spec("chaos", **spec, **slower))
    rows = run.run(kills)
    code = run.finish()
    if code or len(rows) < len(kills):
        print("\n".join(run.output.splitlines()[-LAST_WORDS:]), file=sys.stderr)
    equal = code == 0 and same_weights(final_weights(sandbox, "healthy"), final_weights(sandbox, "chaos"))
    seconds = sorted(row["seconds"] for row in rows if row.get("seconds"))
    total = {
        "kills": len(rows),
        "resumed": sum(row.get("resumed", True) for row in rows) if code == 0 else 0,
        "steps_repeated": sum(row.get("steps_repeated", 0) for row in rows),
        "median_seconds": seconds[len(seconds) // 2] if seconds else 0.0,
        "orphans": len(run.orphans()),
        "tracebacks": run.output.count("Traceback"),
        "exit_code": code,
        "bit_identical": equal,
    }
    return rows, total


def at_moments(names: Sequence[str], folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The kills of these kinds: the next kind falls on a new job where one ended before its turn.

    Returns:
        What followed on each kill, and the sums of each job.
    """
    rows, totals, left = [], [], list(names)
    while left:
        found, total = chaos(of_moments(left), folder / str(len(totals)))
        rows, totals = [*rows, *found], [*totals, total]
        done = next((n for n in range(len(left)) if len(of_moments(left[: n + 1])) > len(found)), len(left))
        if not done:
            progress(f"{left[0]}: its moment did not come")
        left = left[done or 1 :]
    return rows, totals


def main() -> None:
    """Prints a table of the kills and their sums. Fails if anything was lost."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        if options.moments is None:
            kills = random_kills(options.kills, options.seed)
            rows, total = chaos(kills, Path(folder))
            totals = [total]
        else:
            names = options.moments or list(MOMENTS)
            kills = of_moments(names)
            rows, totals = at_moments(names, Path(folder))
    columns = ("victim", "signal", "step", "resumed", "steps_repeated", "seconds")
    table = [{key: row.get(key, "next kill came first") for key in columns} for row in rows]
    publish(
        "chaos", {f"kills, seed {options.seed}": table, "sums": totals}, options.json, seeds=[options.seed]
    )
    whole = all(t["bit_identical"] and not t["orphans"] and not t["tracebacks"] for t in totals)
    resumed, dealt = (sum(t[key] for t in totals) for key in ("resumed", "kills"))
    sys.exit(not (whole and resumed == dealt == len(kills)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", nargs="*", choices=list(MOMENTS), help="kills at these, by default all")
    parser.add_argument("--json", type=Path, help="a file for the kills and the sums")
    return parser.parse_args()


if __name__ == "__main__":
    main()
