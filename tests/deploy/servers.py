"""A real Prometheus and a real Alertmanager, on the configuration that is deployed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.waiting import until

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
INSTALLED = all(shutil.which(name) for name in ("prometheus", "prometheus-alertmanager"))
WINDOW = "15s"
"""Instead of minutes: how far back the rules look, so that what has fired clears within the test."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that listens on a free port of the loopback interface until it is stopped."""

    def __init__(self, folder: Path, program: str, ready: str, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [program, *arguments, f"--web.listen-address=127.0.0.1:{self.port}"],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )
        until(lambda: self.answers(ready), what=f"{program} is ready; see {folder / 'log'}")

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}{path}?{query}", timeout=30) as response:
            return json.load(response)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)


class Alertmanager(Server):
    """Receives the alerts of Prometheus; its receivers notify no one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            "prometheus-alertmanager",
            "/-/ready",
            f"--config.file={PROMETHEUS / 'alertmanager.yml'}",
            f"--storage.path={folder / 'data'}",
            "--cluster.listen-address=",
        )

    def active(self) -> dict[str, set[str]]:
        """The receivers of each alert that is active and not inhibited, by its name."""
        alerts = self.get("/api/v2/alerts", active="true", inhibited="false", silenced="false")
        return {a["labels"]["alertname"]: {r["name"] for r in a["receivers"]} for a in alerts}


class Prometheus(Server):
    """Only the target, the address of the Alertmanager, and times are others than deployed."""

    def __init__(self, folder: Path, hub_port: int, alertmanager: Alertmanager) -> None:
        folder.mkdir(parents=True)
        rules = (PROMETHEUS / "rules.yml").read_text()
        rules = re.sub(r"for: \d+m", "for: 1s", re.sub(r"\[\d+m\]", f"[{WINDOW}]", rules))
        (folder / "rules.yml").write_text(rules)
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "500ms"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{hub_port}"]}]
        config["alerting"]["alertmanagers"][0]["static_configs"] = [
            {"targets": [alertmanager.url.removeprefix("http://")]}
        ]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._began = time.time()
        super().__init__(
            folder,
            "prometheus",
            "/-/ready",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
        )

    def series(self, expression: str) -> list[Any]:
        """All series that an expression ever had since the server began."""
        answer = self.get(
            "/api/v1/query_range",
            query=expression,
            start=str(self._began),
            end=str(time.time()),
            step="0.5",
        )
        return list(answer["data"]["result"])

    def value(self, selector: str) -> float | None:
        """The last value of the one series that is selected; the last scrape may have taken too long."""
        answer = self.get("/api/v1/query", query=f"last_over_time({selector}[1m])")
        result = answer["data"]["result"]
        return float(result[0]["value"][1]) if result else None
