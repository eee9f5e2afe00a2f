"""Runs all benchmarks in sequence, with progress; ``make bench`` calls it.

    python tests/benchmarks/suite.py [--quick] [--only PART ...] [--traces DIR] [--out bench.json]

Writes every table to OUT, and the same as text (``.md``) and pictures (``.svg``) beside it. A part that fails
is reported with its last output, and the others still run. Interrupted, it keeps the finished parts; with
--only, OUT keeps its other parts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_detection import lacking
from measure import PROGRESS, machine
from render import PICTURES, render
from rich.console import Console

HERE = Path(__file__).parent
OUTPUT_LINES = 15


@dataclass(frozen=True, slots=True)
class Part:
    """One script of the benchmark.

    Attributes:
        options: of the full benchmark.
        quick: options of the quick one; None if it is not part of it.
    """

    script: str
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = ()


PARTS: dict[str, Part] = {
    "hot path": Part("bench_hot_path.py", quick=("--rounds", "8")),
    "agreement": Part("bench_agreement.py", quick=("--rounds", "20")),
    "checkpoint": Part("bench_checkpoint.py", quick=("--saves", "2")),
    "hub": Part("bench_hub.py", quick=("--rounds", "50")),
    "service": Part("bench_service.py", quick=("--log-mb", "20", "--followers", "50")),
    "detection": Part("bench_detection.py"),
    "end to end": Part("bench_end_to_end.py", quick=("--rounds", "1", "--steps", "24")),
    "gpu": Part("bench_gpu.py"),
    "survival": Part("bench_survival.py", quick=("--quick",)),
    "explosion": Part("bench_explosion.py", quick=None),
    "prevention": Part("bench_prevention.py", quick=None),
    "rates": Part("bench_rates.py", quick=("--quick",)),
    "early warning": Part("early_warning/bench_warnings.py", quick=("--quick",)),
    "samples": Part("samples/bench_samples.py", quick=("--seeds", "2", "--ranks", "1")),
    "chaos": Part("bench_chaos.py", quick=None),
    "chaos at moments": Part("bench_chaos.py", ("--moments",), quick=None),
    "service chaos": Part("service_chaos/bench_service_chaos.py", quick=("--kinds", "deleted", "clock")),
    "damage": Part("bench_damage.py", quick=None),
}
NEEDS_LOGS = "detection"


def main() -> int:
    """Returns 1 if a part failed."""
    options = _options()
    console = Console(stderr=True, highlight=False)
    found = _before(options)
    chosen = {name: part for name, part in PARTS.items() if _wanted(name, part, options, console)}
    began = time.monotonic()
    try:
        for number, (name, part) in enumerate(chosen.items(), start=1):
            console.print(f"[{number}/{len(chosen)}] {name} ({_minutes(began)} so far)", markup=False)
            found["parts"][name] = result = _run(part, options, console)
            console.print(f"    {result['seconds']:.0f} s{', FAILED' if 'error' in result else ''}")
            _keep(found, options.out)
    except KeyboardInterrupt:
        console.print("stopped; the finished parts are kept")
    failed = [name for name in chosen if "error" in found["parts"].get(name, {})]
    for name in failed:
        console.print(f"{name}: {found['parts'][name]['error']}", style="red", markup=False)
    text = _keep(found, options.out)
    print(text)
    named = (
        f"{options.out.stem}{ending}" for ending in (".json", ".md", *(f"-{name}.svg" for name in PICTURES))
    )
    written = ", ".join(str(path) for path in map(options.out.with_name, named) if path.exists())
    console.print(f"{_minutes(began)} in all; written: {written}", soft_wrap=True)
    return bool(failed) or not chosen.keys() <= found["parts"].keys()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short version of each, within 10 minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--traces", default=os.environ.get("GRADGUARD_TRACES"), help="labelled training logs")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    options = parser.parse_args()
    if options.out.suffix != ".json":
        parser.error(f"--out is {options.out}: give a name that ends in .json")
    if options.traces and (problem := lacking(Path(options.traces))):
        parser.error(f"--traces: {problem}")
    options.out = options.out.absolute()
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    return options


def _before(options: argparse.Namespace) -> dict[str, Any]:
    """The content of OUT, if only some parts are run."""
    if len(options.only) < len(PARTS) and options.out.exists():
        kept: dict[str, Any] = json.loads(options.out.read_text())
        return kept
    return {"parts": {}}


def _wanted(name: str, part: Part, options: argparse.Namespace, console: Console) -> bool:
    if name not in options.only or (options.quick and part.quick is None):
        return False
    if name == NEEDS_LOGS and not options.traces:
        console.print(f"{name} is skipped: it needs labelled training logs (make bench TRACES=folder)")
        return False
    return True


def _run(part: Part, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The tables of a part and its duration, or its last output."""
    arguments = part.quick if options.quick and part.quick is not None else part.options
    # Parts in folders import from here, and some from the tests of the guard.
    paths = [str(HERE), str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "GRADGUARD_TRACES": options.traces or ""}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, str(HERE / part.script), *arguments, "--json", str(out)]
        code, output = followed(command, environment, console)
        seconds = round(time.monotonic() - began, 1)
        written = (
            json.loads(out.read_text()) if out.exists() else {"machine": machine(), "seeds": [], "tables": {}}
        )
    shown = " ".join(("python", f"tests/benchmarks/{part.script}", *arguments))
    result = {"command": shown, "quick": options.quick, "seconds": seconds}
    result |= {key: written[key] for key in ("machine", "seeds", "tables")}
    if code or not written["tables"]:
        result["error"] = f"ended with {code}:\n{''.join(output).rstrip()}"
    return result


def followed(command: list[str], environment: dict[str, str], console: Console) -> tuple[int, list[str]]:
    """Runs a command and shows its progress; returns exit status and last output."""
    output: deque[str] = deque(maxlen=OUTPUT_LINES)
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(PROGRESS):
                    console.print(f"    {line.removeprefix(PROGRESS).rstrip()}", markup=False)
                else:
                    output.append(line)
        except KeyboardInterrupt:
            process.kill()
            raise
    return process.returncode, list(output)


def _keep(found: dict[str, Any], out: Path) -> str:
    """Writes the results so far; returns the text."""
    found["parts"] = {name: found["parts"][name] for name in PARTS if name in found["parts"]}
    out.write_text(json.dumps(found, indent=1) + "\n")
    return render(found, out)


def _minutes(began: float) -> str:
    return f"{(time.monotonic() - began) / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(main())
