"""Rows as Markdown."""

from __future__ import annotations

from typing import Any


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
