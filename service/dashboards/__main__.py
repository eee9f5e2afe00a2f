"""Writes the dashboards to deploy/grafana/dashboards."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from service.dashboards.fleet import fleet
from service.dashboards.incident import incident
from service.dashboards.job import job

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"
DASHBOARDS: tuple[Callable[[], Dashboard], ...] = (fleet, job, incident)


def rendered() -> dict[str, str]:
    """The JSON of each dashboard, by the name of its file."""
    texts = {}
    for make in DASHBOARDS:
        content: dict[str, Any] = json.loads(json.dumps(make().build(), cls=JSONEncoder))
        for number, panel in enumerate(content["panels"], start=1):
            panel["id"] = number
        texts[f"{content['uid']}.json"] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return texts


if __name__ == "__main__":
    if not FOLDER.is_dir():
        sys.exit(f"there is no {FOLDER}: run this in a checkout of the repository")
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
