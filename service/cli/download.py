"""``gradguard download``: what a job recorded, its checkpoints and its weights, from wherever it ran."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from typer import Argument, Option

from jobs.client.models import Recorded
from jobs.errors import JobError
from service.cli.jobs import client_at
from service.cli.options import AddressOption, JsonOption

if TYPE_CHECKING:
    from jobs.client import JobClient

RECORDED: tuple[Recorded, ...] = get_args(Recorded)


def download(
    job_id: Annotated[str, Argument(help="Id of the job.")],
    files: Annotated[
        list[str] | None,
        Argument(help=f"Any of {', '.join(RECORDED)}; all that there are, if nothing else is asked for."),
    ] = None,
    checkpoint: Annotated[
        int | None, Option(metavar="STEP", min=0, help="The checkpoint of this step, as a folder.")
    ] = None,
    weights: Annotated[
        Path | None,
        Option(
            metavar="FILE", help="The model's weights, .safetensors or .pt: of --checkpoint, or the newest."
        ),
    ] = None,
    to: Annotated[Path, Option(help="Folder for the files.")] = Path(),
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Save what a job recorded, a checkpoint, or its weights here."""
    client = client_at(address)
    names = _names(files or [])
    if not to.is_dir():
        raise JobError(f"--to {to}: there is no such folder")
    try:
        if weights is not None:
            saved = [_weights(client, job_id, checkpoint, weights)]
        elif checkpoint is not None:
            saved = [client.download_checkpoint(job_id, checkpoint, to)]
        else:
            saved = []
        if names or not saved:
            saved += _recorded(client, job_id, names, to)
    except OSError as error:
        raise JobError(f"cannot write {error.filename or to}: {error.strerror or error}") from None
    typer.echo(json.dumps([str(path) for path in saved]) if as_json else "\n".join(map(str, saved)))


def _names(files: list[str]) -> list[Recorded]:
    wrong = [file for file in files if file not in RECORDED]
    if wrong:
        raise JobError(f"{wrong[0]} is none of {', '.join(RECORDED)}; --checkpoint and --weights save others")
    return [name for name in RECORDED if name in files]


def _recorded(client: JobClient, job_id: str, names: list[Recorded], to: Path) -> list[Path]:
    """Those that are asked for; else all that there are."""
    saved = [client.download(job_id, name, to) for name in names] or list(_all(client, job_id, to))
    if not saved:
        raise JobError(f"{job_id} has recorded nothing yet")
    return saved


def _all(client: JobClient, job_id: str, to: Path) -> Iterator[Path]:
    from jobs.client import JobNotFound

    client.get(job_id)  # raises where there is no such job
    for name in RECORDED:
        try:
            yield client.download(job_id, name, to)
        except JobNotFound:
            continue


def _weights(client: JobClient, job_id: str, step: int | None, target: Path) -> Path:
    from jobs.checkpoints.export import export_model
    from jobs.checkpoints.load import read
    from jobs.run_dir.open_storage import open_storage

    if step is None:
        good = [found.step for found in client.checkpoints(job_id) if found.health == "good"]
        step = good[-1] if good else None
    if step is None:
        raise JobError(f"{job_id} has no good checkpoint yet")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        saved = client.download_checkpoint(job_id, step, folder)
        export_model(read(open_storage(Path(folder)), saved.name), target)
    return target
