"""Everything that only a GPU can show, within ten minutes, on a machine without ray, pydantic or network.

    python tests/benchmarks/gpu_session.py [--wheels DIR] [--device cuda|cpu] [--json FILE] [--only PART ...]

Each part runs in a process of its own with a time limit: one that fails or hangs costs its own time only, and
the results so far are in FILE after each. The machine needs torch, torchvision, prometheus-client, rich and
pytest; wheels of what it lacks are unpacked from DIR. ``--device cpu`` rehearses with small models: what only
a GPU can show is "not measured", and ``render.py`` shows nothing of it. Ends with 1 if a part failed, 2 if a
package is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.machine_needs import ROOT, missing, unpack

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "gpu.json"
BUDGET_S = 570.0
OUTPUT_LINES = 12
TESTS = "tests"


@dataclass(frozen=True, slots=True)
class Part:
    """One process.

    Attributes:
        arguments: of the interpreter.
        limit_s: after which it is ended.
        needs: a tool that starts the interpreter; without it the part is not measured on a GPU.
    """

    arguments: tuple[str, ...]
    limit_s: float
    needs: tuple[str, ...] = ()


def _measurement(name: str, limit_s: float, *needs: str) -> Part:
    return Part(("-m", "gpu.measurements", name), limit_s, needs)


PARTS: dict[str, Part] = {
    TESTS: Part(
        ("-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "tests/guard/test_cuda.py"), 150
    ),
    "counts": _measurement("counts", 120),
    "graph capture": _measurement("graph capture", 60),
    "host snapshot": _measurement("host snapshot", 60),
    "memory": _measurement("memory", 60),
    "comm hook": _measurement("comm hook", 60),
    "sanitizer": _measurement("skip and rollback", 120, "compute-sanitizer", "--error-exitcode", "9"),
    "whole steps": Part((str(HERE / "bench_gpu.py"),), 300),
}


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / "wheels"
        if options.wheels is not None:
            unpack(options.wheels, unpacked)
            sys.path.append(str(unpacked))
        if lines := missing(unpacked):
            print(*lines, sep="\n", file=sys.stderr)
            return 2
        return _measure(options, Path(folder), str(unpacked))


def _measure(options: argparse.Namespace, folder: Path, unpacked: str) -> int:
    from measure import machine  # torch and rich are there

    own = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, (str(ROOT), str(HERE), own, unpacked)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    found: dict[str, Any] = {"machine": machine(), "rehearsal": options.device == "cpu", "parts": {}}
    began = time.monotonic()
    for name, part in PARTS.items():
        if options.only and name not in options.only:
            continue
        left = BUDGET_S - (time.monotonic() - began)
        found["parts"][name] = result = _run(part, options, folder, environment, left)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {result.get('error', 'done')}, {result['seconds']} s", flush=True)
    return 1 if any("error" in result for result in found["parts"].values()) else 0


def _run(
    part: Part, options: argparse.Namespace, folder: Path, environment: dict[str, str], left: float
) -> dict[str, Any]:
    """Its tables and duration; ``error`` and the last output where it failed."""
    out = folder / "out"
    out.unlink(missing_ok=True)
    began = time.monotonic()
    error, output = _ended(_command(part, options, out), environment, min(part.limit_s, left))
    result: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "tables": _tables(out)}
    if part.needs and not shutil.which(part.needs[0]):
        result["note"] = f"there is no {part.needs[0]}: the part ran without it"
    if error or not result["tables"]:
        result |= {"error": error or "it wrote nothing", "output": output.splitlines()[-OUTPUT_LINES:]}
    return result


def _command(part: Part, options: argparse.Namespace, out: Path) -> list[str]:
    tool = part.needs if options.device == "cuda" and part.needs and shutil.which(part.needs[0]) else ()
    if "pytest" in part.arguments:
        return [sys.executable, *part.arguments, f"--junitxml={out}"]
    rounds = ("--rounds", str(options.rounds)) if part is PARTS["whole steps"] else ()
    own = ("--device", options.device, "--json", str(out))
    return [*tool, sys.executable, *part.arguments, *rounds, *own]


def _ended(command: list[str], environment: dict[str, str], limit_s: float) -> tuple[str, str]:
    """Why it failed, empty if it did not; and what it printed."""
    if limit_s <= 0:
        return "no time was left", ""
    with tempfile.TemporaryFile("w+") as output:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            ).returncode
            error = f"ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            error = f"ended after its limit of {limit_s:g} s"
        output.seek(0)
        return error, output.read()


def _tables(out: Path) -> dict[str, Any]:
    if not out.exists():
        return {}
    text = out.read_text()
    if text.startswith("{"):
        tables: dict[str, Any] = json.loads(text)["tables"]
        return tables
    return {TESTS: [_outcome(case) for case in ET.fromstring(text).iter("testcase")]}


def _outcome(case: ET.Element) -> dict[str, Any]:
    worst = next((kind for kind in ("error", "failure", "skipped") if case.find(kind) is not None), "passed")
    return {"test": case.get("name"), "outcome": worst}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels to unpack")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--rounds", type=int, default=20, help="of whole steps")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
