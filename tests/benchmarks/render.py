"""The results of the benchmarks as text and pictures, for a file of their own and for the README.

    python tests/benchmarks/render.py            writes the README's figures anew, from results/bench.json

The README holds each block between ``<!-- bench: NAME -->`` and ``<!-- end of bench -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pictures import survival_picture

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results" / "bench.json"
GUARD = "GradGuard"
TASKS = {"resnet": "ResNet", "gpt": "GPT"}
_BLOCK = re.compile(r"(<!-- bench: ([a-z ]+) -->\n).*?(<!-- end of bench -->)", re.DOTALL)

Parts = dict[str, Any]


def render(found: dict[str, Any], out: Path) -> str:
    """Writes the text, and a picture where there is something to see; returns the text."""
    parts: Parts = found["parts"]
    sections = [f"## {name}\n\n{_section(name, part)}" for name, part in parts.items()]
    text = "# Benchmarks\n\n" + "\n".join(sections)
    out.with_suffix(".md").write_text(text)
    if "survival" in parts and parts["survival"]["tables"]:
        survival_picture(_survival(parts), out.with_name(f"{out.stem}-survival.svg"))
    return text


def _section(name: str, part: dict[str, Any]) -> str:
    head = f"{_carried(part)}\n\n"
    if "error" in part:
        head += f"FAILED: {part['error'].splitlines()[0]}\n\n"
    if name == "survival" and part["tables"]:
        return head + survival({"survival": part})
    return head + "\n".join(f"{title}\n\n{markdown(rows)}" for title, rows in part["tables"].items())


def _carried(part: dict[str, Any]) -> str:
    """Where the figures come from."""
    made = part["machine"]
    versions = ", ".join(f"{name} {made[name]}" for name in ("python", "torch", "ray"))
    quick = "; quick form" if part["quick"] else ""
    return (
        f"`{part['command']}` on {made['device']}, {made['cores']} cores, {versions}, "
        f"commit {made['commit']}{quick}"
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table, numbers right-aligned."""
    names = list(rows[0])
    right = [isinstance(rows[0][name], (int, float)) for name in names]
    lines = [names, ["---:" if r else "---" for r in right]]
    lines += [[_shown(row[name]) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _shown(value: object) -> str:
    if value is None:
        return "lost"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def _survival(parts: Parts) -> dict[str, list[dict[str, Any]]]:
    tables = parts["survival"]["tables"]
    return {task: tables[task] for task in TASKS if task in tables}


def survival(parts: Parts) -> str:
    """How every method did over all faults, and every fault for itself."""
    tasks = _survival(parts)
    rows = [row for table in tasks.values() for row in table]
    text = markdown(_methods(rows)) + "\n"
    for task, table in tasks.items():
        text += (
            f"{TASKS[task]}: runs survived of {table[0]['seeds']}, held-out loss against the clean run's\n\n"
        )
        text += markdown(_by_case(table)) + "\n"
    return text + _missed(rows)


def survival_summary(parts: Parts) -> str:
    """How every method did over all faults, and where ours did not reach its goals."""
    rows = [row for table in _survival(parts).values() for row in table]
    return markdown(_methods(rows)) + "\n" + _missed(rows)


def _methods(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    faults = [row for row in rows if row["case"] != "clean"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return [_over_cases(method, [row for row in faults if row["method"] == method]) for method in methods]


def _over_cases(method: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    runs = sum(row["seeds"] for row in rows)
    return {
        "method": f"**{method}**" if method == GUARD else method,
        "survived": f"{sum(row['survived'] for row in rows)} of {runs}",
        "within 1 % of clean": f"{sum(row['within 1 %'] for row in rows)} of {runs}",
        "faults survived on every seed": f"{sum(r['survived'] == r['seeds'] for r in rows)} of {len(rows)}",
        "steps lost a run": sum(row["steps lost"] * row["seeds"] for row in rows) / runs,
    }


def _by_case(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    for row in table:
        cases.setdefault(row["case"], {"fault": row["case"]})[row["method"]] = _told(row)
    return list(cases.values())


def _missed(rows: list[dict[str, Any]]) -> str:
    """Faults that our guard did not survive on every seed, and those where another method ended better."""
    by_key: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault((row["task"], row["case"]), []).append(row)
    lines = []
    for (task, case), found in by_key.items():
        ours = next((row for row in found if row["method"] == GUARD), None)
        if ours is None or case == "clean":
            continue
        better = [row for row in found if _better(row, ours)]
        if ours["survived"] < ours["seeds"] or better:
            named = ", ".join(f"{row['method']} {_told(row)}" for row in better) or "no other is better"
            lines.append(f"- {TASKS[task]}, {case}: {GUARD} {_told(ours)}; {named}")
    if not lines:
        return f"No other method survives a fault more often than {GUARD}, or ends more than 1 % better.\n"
    head = f"Where {GUARD} loses runs, or another method ends more than 1 % better (runs survived, loss):"
    return f"{head}\n\n" + "\n".join(lines) + "\n"


def _told(row: dict[str, Any]) -> str:
    ratio = "lost" if row["loss / clean"] is None else f"{row['loss / clean']:.2f}"
    return f"{row['survived']} of {row['seeds']}, {ratio}"


def _better(row: dict[str, Any], ours: dict[str, Any]) -> bool:
    if row["method"] == GUARD or row["loss / clean"] is None or row["survived"] < ours["survived"]:
        return False
    worse = ours["loss / clean"] is None or row["survived"] > ours["survived"]
    return bool(worse or row["loss / clean"] < ours["loss / clean"] - 0.01)


def _tables(name: str) -> Callable[[Parts], str]:
    return lambda parts: "\n".join(markdown(rows) for rows in parts[name]["tables"].values())


BLOCKS: dict[str, Callable[[Parts], str]] = {
    "survival": survival_summary,
    **{name: _tables(name) for name in ("detection", "end to end", "prevention", "service", "hub", "gpu")},
    "hot path": lambda parts: markdown([_hot(row) for row in parts["hot path"]["tables"]["hot path"]]),
    "checkpoint": _tables("checkpoint"),
    "explosion": _tables("explosion"),
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


def rendered_readme(text: str, parts: Parts) -> str:
    """The README with every block drawn from the results."""
    return _BLOCK.sub(lambda found: found[1] + BLOCKS[found[2]](parts) + found[3], text)


def main() -> None:
    """Rewrites the README and the text and pictures beside the results."""
    found = json.loads(RESULTS.read_text())
    render(found, RESULTS)
    README.write_text(rendered_readme(README.read_text(), found["parts"]))


if __name__ == "__main__":
    main()
