"""``gradguard checkpoints``: lists, verifies, compares and exports a job's checkpoints."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option

from jobs.checkpoints.errors import DamagedCheckpoint
from jobs.checkpoints.listing import checkpoint_folder, manifests, unlisted
from jobs.checkpoints.manifest import Manifest
from jobs.errors import JobError
from jobs.report.formats import size_text
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.paths import CHECKPOINTS, SPEC
from jobs.run_dir.storage import Storage, shown, step_of
from jobs.spec.job_spec import JobSpec
from service.cli.options import JsonOption
from service.cli.tables import PlainTable

if TYPE_CHECKING:
    from jobs.checkpoints.load import Content

DAMAGED = 1
SHOWN = 40


def checkpoints(
    job: Annotated[str, Argument(help="A job's folder, or the folder or URL of its checkpoints.")],
    check: Annotated[
        bool,
        Option(
            "--verify", help="Read every file and check it against its checksum; exit code 1 if one differs."
        ),
    ] = False,
    compare: Annotated[
        tuple[int, int] | None,
        Option(metavar="STEP STEP", help="Show which tensors differ between two steps, and by how much."),
    ] = None,
    export: Annotated[
        int | None, Option(metavar="STEP", help="Write the model of this step to the file of --to.")
    ] = None,
    to: Annotated[
        Path | None,
        Option(
            help="Of --export: .safetensors, .pt for a state dict, .onnx, or a folder for from_pretrained."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List a job's checkpoints, or verify, compare or export them. Changes nothing."""
    if (export is None) != (to is None):
        raise JobError("--export STEP and --to FILE belong together: set both")
    place, storage = _find(job)
    try:
        if export is not None and to is not None:
            _export(storage, export, to)
        elif compare is not None:
            _compare(storage, compare, as_json=as_json)
        else:
            _list(place, storage, check=check, as_json=as_json)
    except OSError as error:
        raise JobError(f"cannot read {place}: {error.strerror or error}") from None


def _find(job: str) -> tuple[str, Storage]:
    """Where a job's checkpoints are stored: as in its spec, in its folder, or at this path itself."""
    place: str | Path = job
    folder = Path(job)
    if "://" not in job:
        if not folder.is_dir():
            raise JobError(f"there is no folder {job}: give a job's folder, such as runs/NAME, or a URL")
        if (folder / CHECKPOINTS).is_dir():
            place = folder / CHECKPOINTS
        if (folder / SPEC).exists() and (spec := JobSpec.load(folder / SPEC)).train.checkpoint_storage:
            place = spec.checkpoint_place
    return shown(place), open_storage(place)


def _list(place: str, storage: Storage, *, check: bool, as_json: bool) -> None:
    readable, damaged = manifests(storage)
    rows = [_row(manifest) for manifest in readable]
    if check:
        damaged |= _verify(storage, readable) | unlisted(storage)
        damaged = dict.fromkeys(storage.aside(), "was found damaged before, and set aside") | damaged
    rows += [{"step": step_of(name)} for name in damaged if name not in _names(readable)]
    for row in rows:
        row["problem"] = damaged.get(checkpoint_folder(row["step"]))
        row["state"] = "damaged" if row["problem"] else row.get("health")
    rows.sort(key=lambda row: row["step"])
    if as_json:
        typer.echo(json.dumps({"place": place, "verified": check, "checkpoints": rows}, allow_nan=False))
    else:
        _show(place, rows, check=check)
    if damaged:
        raise typer.Exit(DAMAGED)


def _row(manifest: Manifest) -> dict[str, Any]:
    row = json.loads(manifest.render())  # numbers that are not finite are text there
    fields = ("step", "attempt", "health", "created", "world_size", "metrics", "versions")
    return {field: row[field] for field in fields} | {"bytes": manifest.size}


def _names(readable: list[Manifest]) -> set[str]:
    return {checkpoint_folder(manifest.step) for manifest in readable}


def _verify(storage: Storage, readable: list[Manifest]) -> dict[str, str]:
    from jobs.checkpoints.load import verify  # imports torch, as those below do

    problems = {}
    for name in sorted(_names(readable)):
        try:
            verify(storage, name)
        except DamagedCheckpoint as error:
            problems[name] = str(error)
    return problems


def _show(place: str, rows: list[dict[str, Any]], *, check: bool) -> None:
    console = Console(highlight=False)
    if not rows:
        console.print(f"no checkpoints in {place}", soft_wrap=True, markup=False)
        return
    table = PlainTable("step", "state", "saved", "size", "ranks", "metrics", box=None)
    for row in rows:
        if "health" not in row:
            table.add_row(str(row["step"]), row["state"], "", "", "", "")
            continue
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created"]))
        metrics = ", ".join(f"{name} {_figure(value)}" for name, value in row["metrics"].items())
        size, ranks = size_text(row["bytes"]), str(row["world_size"])
        table.add_row(str(row["step"]), row["state"], saved, size, ranks, metrics)
    console.print(table)
    for row in rows:
        if row["problem"]:
            console.print(f"step {row['step']}: {row['problem']}", style="red", markup=False, soft_wrap=True)
    if check and not any(row["problem"] for row in rows):
        console.print(f"{len(rows)} verified: every byte is as it was written")


def _compare(storage: Storage, steps: tuple[int, int], *, as_json: bool) -> None:
    from jobs.checkpoints.compare import differences

    first, second = (_content(storage, step) for step in steps)
    found = differences(first, second)
    if as_json:
        typer.echo(json.dumps({"steps": steps, "differences": [asdict(d) for d in found]}, allow_nan=False))
        return
    console = Console(highlight=False)
    table = PlainTable("tensor", "differs in", "largest", "relative", "not finite", box=None)
    for difference in sorted(found, key=lambda d: -(d.relative or 0.0))[:SHOWN]:
        nonfinite = "" if difference.nonfinite == (0, 0) else "{} / {}".format(*difference.nonfinite)
        figures = (_figure(difference.largest), _figure(difference.relative), nonfinite)
        table.add_row(difference.name, difference.what, *figures)
    if found:
        console.print(table)
    if len(found) > SHOWN:
        console.print(f"... and {len(found) - SHOWN} more: --json has all")
    count = f"{len(found)} of {len(first.tensors)} tensors"
    console.print(f"{count} differ between steps {steps[0]} and {steps[1]}")


def _export(storage: Storage, step: int, target: Path) -> None:
    if not target.parent.is_dir():
        raise JobError(f"cannot write {target}: there is no folder {target.parent}")
    console, content = Console(highlight=False), _content(storage, step)
    try:
        written = _exported(content, target)
    except DamagedCheckpoint as error:
        raise JobError(f"checkpoint {checkpoint_folder(step)} is damaged: {error}") from None
    console.print(f"{target}: {written}", soft_wrap=True, markup=False)
    if target.suffix:
        console.print(f"load it with {_how_to_load(content, target)}", soft_wrap=True, markup=False)


def _exported(content: Content, target: Path) -> str:
    """Writes the model; what was written."""
    from jobs.checkpoints.export import export_model
    from jobs.models.exported import save_pretrained

    if target.suffix == ".onnx":
        from jobs.models.onnx_file import save_onnx

        return f"the model of step {content.manifest.step}; it takes {save_onnx(content, target)}"
    if target.suffix:
        return f"{export_model(content, target)} tensors of step {content.manifest.step}"
    save_pretrained(content, target)
    return f"the model of step {content.manifest.step}, for from_pretrained"


def _how_to_load(content: Content, target: Path) -> str:
    """The call that reads an exported file: of a model of ours the model, else its tensors."""
    from jobs.checkpoints.export import about_model

    if target.suffix == ".onnx":
        return f"onnxruntime.InferenceSession({str(target)!r})"
    if target.suffix != ".safetensors":
        return f"torch.load({str(target)!r}, weights_only=True)"
    known = about_model(content.manifest)["sizes"]
    return f"{'jobs.load_model' if known else 'safetensors.torch.load_file'}({str(target)!r})"


def _content(storage: Storage, step: int) -> Content:
    from jobs.checkpoints.load import read

    name, names = checkpoint_folder(step), storage.names()
    if name not in names:
        there = ", ".join(str(step_of(other)) for other in names) or "none"
        raise JobError(f"there is no checkpoint of step {step}; there are: {there}")
    try:
        return read(storage, name)
    except DamagedCheckpoint as error:
        raise JobError(f"checkpoint {name} is damaged: {error}") from None


def _figure(value: Any) -> str:
    return "" if value is None else f"{float(value):.4g}"
