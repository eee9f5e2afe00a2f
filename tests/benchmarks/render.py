"""The results of the benchmarks as text and pictures, for a file of their own and for the README.

    python tests/benchmarks/render.py            rewrites the README's figures from results/bench.json

The README has each block between ``<!-- bench: NAME -->`` and ``<!-- end of bench -->``.
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
from survival_tables import by_task, survival, survival_summary, witness_summary

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results" / "bench.json"
EXPLOSION = "the same training with faults"
_BLOCK = re.compile(r"(<!-- bench: ([a-z ]+) -->\n).*?(<!-- end of bench -->)", re.DOTALL)

StepParts = dict[str, Any]


def render(found: dict[str, Any], out: Path) -> str:
    """Writes the text, and pictures of the parts that have one; returns the text."""
    parts: StepParts = found["parts"]
    sections = [f"## {name}\n\n{_section(name, part)}" for name, part in parts.items()]
    text = "# Benchmarks\n\n" + "\n".join(sections)
    out.with_suffix(".md").write_text(text)
    for name, (needed, draw) in PICTURES.items():
        known = {part: parts[part]["tables"] for part in needed if parts.get(part, {}).get("tables")}
        if known:
            draw(known, out.with_name(f"{out.stem}-{name}.svg"))
    return text


def _section(name: str, part: dict[str, Any]) -> str:
    head = f"{_carried(part)}\n\n"
    if "error" in part:
        head += f"FAILED: {part['error'].splitlines()[0]}\n\n"
    if name == "survival" and part["tables"]:
        return head + survival({"survival": part})
    return head + "\n".join(f"{title}\n\n{markdown(rows)}" for title, rows in part["tables"].items())


def _carried(part: dict[str, Any]) -> str:
    """The source of the figures."""
    made = part["machine"]
    versions = ", ".join(f"{name} {made[name]}" for name in ("python", "torch", "ray"))
    seeds = ", ".join(map(str, part["seeds"]))
    quick = "; quick form" if part["quick"] else ""
    return (
        f"`{part['command']}` on {made['device']}, {made['cores']} cores, {versions}, "
        f"{f'seeds {seeds}, ' if seeds else ''}commit {made['commit']}{quick}"
    )


def _tables(name: str) -> Callable[[StepParts], str]:
    return lambda parts: "\n".join(markdown(rows) for rows in parts[name]["tables"].values())


PICTURES: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], Path], None]]] = {
    "survival": (("survival",), lambda known, path: survival_picture(by_task(known["survival"]), path)),
    "detection": (("detection",), lambda known, path: detection_picture(known["detection"], path)),
    "speed": (("hot path", "end to end", "checkpoint"), speed_picture),
}
"""By the ending of the file: the parts that it is drawn from, and how."""

BLOCKS: dict[str, Callable[[StepParts], str]] = {
    "survival": survival_summary,
    "witness": witness_summary,
    **{name: _tables(name) for name in ("detection", "end to end", "prevention", "service", "hub", "gpu")},
    "hot path": lambda parts: markdown([_hot(row) for row in parts["hot path"]["tables"]["hot path"]]),
    "checkpoint": _tables("checkpoint"),
    "worth": lambda parts: markdown([_worth(row) for row in parts["explosion"]["tables"][EXPLOSION]]),
    "chaos": lambda parts: markdown(parts["chaos"]["tables"]["sums"]),
    "machine": lambda parts: _carried(parts["hot path"]) + "\n",
}


def _hot(row: dict[str, Any]) -> dict[str, Any]:
    """The columns that a reader of the README asks for."""
    wanted = (
        "model",
        "clip_grad_norm_ ms",
        "guard / clip, nothing clipped",
        "guard / clip, every step clipped",
    )
    return {name: row[name] for name in (*wanted, "snapshot / copy", "rollback / copy")}


def _worth(row: dict[str, Any]) -> dict[str, Any]:
    """What a run with faults came to, as one says it."""
    lost = math.isnan(row["test_loss"])
    return {
        "": row["run"],
        "test accuracy": f"{100 * row['test_accuracy']:.2f} %",
        "steps lost": "all, the weights are NaN" if lost else f"{row['steps_lost']} of {row['steps']}",
        "share of the time spent in the guard": f"{100 * row['guard_share']:.1f} %",
    }


def rendered_readme(text: str, parts: StepParts) -> str:
    """The README with every block drawn from the results."""
    return _BLOCK.sub(lambda found: found[1] + BLOCKS[found[2]](parts) + found[3], text)


def main() -> None:
    """Rewrites the README and the text and pictures beside the results."""
    found = json.loads(RESULTS.read_text())
    render(found, RESULTS)
    README.write_text(rendered_readme(README.read_text(), found["parts"]))


if __name__ == "__main__":
    main()
