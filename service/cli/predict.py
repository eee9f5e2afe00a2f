"""``gradguard predict``: what a trained model says of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from service.cli.options import JsonOption
from service.cli.query import job_folder


def predict(
    job: Annotated[Path, Argument(help="The folder of a job, such as runs/fashion.")],
    files: Annotated[list[Path], Argument(help="Images; texts; tables, for workload tabular.")],
    top: Annotated[int, Option(min=1, help="How many classes of each.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Classify images, texts or rows, or continue texts, with the newest good checkpoint of a job."""
    job_folder(job)
    from jobs.training.predict import predict as predict_files

    for found in predict_files(job, files, top=top):
        typer.echo(json.dumps(found.to_dict()) if as_json else found.line())
