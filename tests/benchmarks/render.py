"""The results of the benchmarks as text and pictures, for a file of their own and for the README.

    python tests/benchmarks/render.py            rewrites the README's figures from results/bench.json, and
                                                 from results/gpu.json where gpu_session.py has measured

The README holds each block between ``<!-- bench: NAME -->`` and ``<!-- end of bench -->``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_tables import markdown
from pictures import detection_picture, speed_picture, survival_picture
from survival_tables import by_task, survival, survival_summary

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results" / "bench.json"
GPU_RESULTS = RESULTS.with_name("gpu.json")
GPU_COMMAND = "python tests/benchmarks/gpu_session.py"
WHOLE_STEPS = "whole steps"
"""The part of a session that ``bench_gpu.py`` measures."""
EXPLOSION = "the same training with faults"
_BLOCK = re.compile(r"(<!-- bench: ([a-z ]+) -->\n).*?(<!-- end of bench -->)", re.DOTALL)

StepParts = dict[str, Any]


def render(found: dict[str, Any], out: Path) -> str:
    """Writes the text, and pictures where there is something to see; returns the text."""
    parts: StepParts = found["parts"]
    sections = [f"## {name}\n\n{_section(name, part)}" for name, part in parts.items()]
    text = "# Benchmarks\n\n" + "\n".join(sections)
    out.with_suffix(".md").write_text(text)
    for name, (needed, draw) in PICTURES.items():
        known = {part: parts[part]["tables"] for part in needed if parts.get(part, {}).get("tables")}
        if known:
            draw(known, out.with_name(f"{out.stem}-{name}.svg"))
    return text


def kept_results() -> dict[str, Any]:
    """What has been measured; a rehearsal on the CPU counts for nothing."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    if GPU_RESULTS.exists():
        found["parts"] |= gpu_parts(json.loads(GPU_RESULTS.read_text()))
    return found


def gpu_parts(session: dict[str, Any]) -> StepParts:
    """The parts of a session on a GPU, as those of the suite."""
    if session["rehearsal"]:
        return {}
    common = {"command": GPU_COMMAND, "quick": False, "machine": session["machine"], "seeds": [0]}
    parts = {f"gpu, {name}": {**common, **part} for name, part in session["parts"].items()}
    return {"gpu": parts.pop(f"gpu, {WHOLE_STEPS}"), **parts} if f"gpu, {WHOLE_STEPS}" in parts else parts


def _section(name: str, part: dict[str, Any]) -> str:
    head = f"{_carried(part)}\n\n"
    if "error" in part:
        head += f"FAILED: {part['error'].splitlines()[0]}\n\n"
    if name == "survival" and part["tables"]:
        return head + survival({"survival": part})
    return head + "\n".join(f"{title}\n\n{markdown(rows)}" for title, rows in part["tables"].items())


def _carried(part: dict[str, Any]) -> str:
    """Where the figures come from."""
    made, seeds = part["machine"], ", ".join(map(str, part["seeds"]))
    quick = "; quick form" if part["quick"] else ""
    return (
        f"`{part['command']}` on {_machine(made)}, "
        f"{f'seeds {seeds}, ' if seeds else ''}commit {made['commit']}{quick}"
    )


def _machine(made: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {made[name]}" for name in ("python", "torch", "ray"))
    return f"{made['device']}, {made['cores']} cores, {versions}"


PICTURES: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], Path], None]]] = {
    "survival": (("survival",), lambda known, path: survival_picture(by_task(known["survival"]), path)),
    "detection": (("detection",), lambda known, path: detection_picture(known["detection"], path)),
    "speed": (("hot path", "end to end", "checkpoint"), speed_picture),
}
"""By the ending of the file: the parts that it is drawn from, and how."""

BLOCKS: dict[str, Callable[[StepParts], str]] = {
    "worth": lambda parts: markdown([_worth(row) for row in parts["explosion"]["tables"][EXPLOSION]]),
    "machine": lambda parts: _machine(parts["hot path"]["machine"]) + "\n",
    "survival": survival_summary,
    "detection": lambda parts: markdown([_detector(row) for row in _rows(parts, "detection")]),
    "rates": lambda parts: markdown(_rows(parts, "rates")),
    "cost": lambda parts: markdown(_costs(parts)),
    "chaos": lambda parts: markdown([_chaos(row) for row in parts["chaos"]["tables"]["sums"]]),
    "gpu": lambda parts: _on_a_gpu(parts["gpu"]),
}
"""What the README shows; the rest is in the text beside the results."""


def _rows(parts: StepParts, name: str) -> list[dict[str, Any]]:
    """The first table of a part."""
    return next(iter(parts[name]["tables"].values()))


def _worth(row: dict[str, Any]) -> dict[str, Any]:
    lost = math.isnan(row["test_loss"])
    return {
        "": row["run"],
        "test accuracy": f"{100 * row['test_accuracy']:.2f} %",
        "steps lost": "all, the weights are NaN" if lost else f"{row['steps_lost']} of {row['steps']}",
        "share of the time spent in the guard": f"{100 * row['guard_share']:.1f} %",
    }


def _detector(row: dict[str, Any]) -> dict[str, Any]:
    wanted = ("detector", "caught", "false alarms a 1,000 steps", "delay, p90")
    return {name: row[name] for name in wanted}


def _costs(parts: StepParts) -> list[dict[str, Any]]:
    """Ratios to the obvious baseline, slowest and fastest alike."""
    clips = [
        (
            f"the guard's part of a step, {row['model']}, {what}",
            "`clip_grad_norm_`",
            row[f"guard / clip, {what}"],
        )
        for row in _rows(parts, "hot path")
        for what in ("nothing clipped", "every step clipped")
    ]
    jobs = [
        (f"a job: {row['seconds']}", "plain Ray Train, clipping", row["ratio"])
        for row in _rows(parts, "end to end")
    ]
    saves = [
        (
            f"a checkpoint: {row['what']}",
            f"`torch.{'load' if row['what'] == 'load' else 'save'}`",
            row["ratio"],
        )
        for row in _rows(parts, "checkpoint")
    ]
    return [{"what": what, "baseline": base, "ratio": ratio} for what, base, ratio in (*clips, *jobs, *saves)]


def _chaos(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "kills": row["kills"],
        "resumed": row["resumed"],
        "steps repeated": row["steps_repeated"],
        "median seconds to resume": row["median_seconds"],
        "orphan processes": row["orphans"],
        "final weights": "bit-identical to the undisturbed run"
        if row["bit_identical"]
        else "not bit-identical",
    }


def _on_a_gpu(part: dict[str, Any]) -> str:
    """The table of whole steps, or that there is none."""
    rows = [row for table in part["tables"].values() for row in table if "to no guard" in row]
    if not rows or part["machine"]["torch"].endswith("+cpu"):
        script = "gpu_session.py"
        return f"- Nothing has been measured on a GPU yet: [`{script}`](tests/benchmarks/{script}) does it.\n"
    wanted = ("model", "method", "to no guard", "host waits a step", "launches a step")
    table = markdown([{name: row[name] for name in wanted} for row in rows])
    return f"- On {part['machine']['device']}, a bfloat16 training step:\n\n{table}"


def rendered_readme(text: str, parts: StepParts) -> str:
    """The README with every block drawn from the results."""
    return _BLOCK.sub(lambda found: found[1] + BLOCKS[found[2]](parts) + found[3], text)


def main() -> None:
    """Rewrites the README and the text and pictures beside the results."""
    found = kept_results()
    render(found, RESULTS)
    README.write_text(rendered_readme(README.read_text(), found["parts"]))


if __name__ == "__main__":
    main()
