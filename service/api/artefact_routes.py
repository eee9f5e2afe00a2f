"""Routes for the files of a job, as a stream: what it recorded, and its checkpoints."""

import json
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import APIRouter
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from jobs.client.errors import JobNotFound, Unsupported
from jobs.client.job_files import JobFiles
from jobs.client.models import Recorded
from jobs.run_dir.jsonl import LARGEST_DOCUMENT, parse_row
from jobs.run_dir.paths import METRICS, RESULT
from jobs.run_dir.plain_file import open_plain
from jobs.run_dir.storage import MANIFEST
from jobs.spec.masking import Mask
from service.api.auth import Allowed, Reader, StillAllowed, Submitter
from service.api.context import Context, Service
from service.api.job_routes import COMMON, JobId
from service.api.problems import Problem, documented
from service.api.view import files_of, mask_of
from service.store import JobRow

PIECE = 1 << 20
BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
STREAM = {**documented(404, 409), 200: {"content": BINARY}}

router = APIRouter(prefix="/v1", responses=documented(*COMMON))
Step = Annotated[int, PathParameter(ge=0, lt=10**18)]


@router.get("/jobs/{job_id}/files/{name}", response_class=StreamingResponse, responses=STREAM)
def recorded(
    job_id: JobId, name: Recorded, service: Service, _: Reader, allowed: StillAllowed
) -> StreamingResponse:
    """A file that the job recorded, as it is now; the job's secrets in its texts are masked."""
    job = service.store.get(job_id)
    files = _files(service, job)
    try:
        file = open_plain(files.folder.path / name, files.below)
    except FileNotFoundError:
        raise Problem(404, f"{job_id} has no {name} yet") from None
    mask = mask_of(job)
    pieces = _masked(file, mask) if name == RESULT else _masked_lines(file, mask)
    return _stream(_pieces(file) if name == METRICS else pieces, allowed, f"{job_id}-{name}")


@router.get("/jobs/{job_id}/checkpoints/{step}", response_class=StreamingResponse, responses=STREAM)
def checkpoint(
    job_id: JobId, step: Step, service: Service, _: Submitter, allowed: StillAllowed
) -> StreamingResponse:
    """The checkpoint of a step as a tar file: tensors in ``.safetensors``, the rest in JSON. It contains the
    spec with its secrets."""
    files = _files(service, service.store.get(job_id))
    try:
        folder = files.checkpoint_of(step)
    except (JobNotFound, Unsupported) as error:
        raise Problem(404, str(error)) from None
    name = folder.name
    open_plain(folder / MANIFEST, files.below).close()  # of a folder elsewhere not even a name is shown
    paths = sorted(path for path in folder.iterdir() if not path.is_dir())
    for path in paths:
        open_plain(path, files.below).close()  # a link elsewhere is refused before the answer begins
    return _stream(_tar(name, paths, files.below), allowed, f"{job_id}-{name}.tar")


def _files(service: Context, job: JobRow) -> JobFiles:
    files = files_of(service, job)
    if files is None:
        raise Problem(404, f"{job.id} has no files below the service's storage folder")
    return files


def _stream(pieces: Iterator[bytes], allowed: Allowed, name: str) -> StreamingResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_sent(pieces, allowed), media_type="application/octet-stream", headers=headers)


async def _sent(pieces: Iterator[bytes], allowed: Allowed) -> AsyncIterator[bytes]:
    """As fast as the client receives; breaks off without an end when the token is revoked."""
    while piece := await run_in_threadpool(next, pieces, b""):
        if not await allowed():
            raise ConnectionAbortedError("the token was revoked")
        yield piece


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece


def _masked(file: BinaryIO, mask: Mask) -> Iterator[bytes]:
    """A document whose texts quote the job's command line and its error; nothing where it is none."""
    with file:
        result = parse_row(file.read(LARGEST_DOCUMENT))
    if result is not None:
        yield json.dumps(mask.document(result), indent=2).encode() + b"\n"


def _masked_lines(file: BinaryIO, mask: Mask) -> Iterator[bytes]:
    """Each line as it is, unless it holds a secret; the numbers of a row of JSON are none."""
    with file:
        while line := file.readline(PIECE):
            if (shown := mask(line)) != line and (row := parse_row(line)) is not None:
                shown = json.dumps(mask.document(row)).encode() + b"\n"
            yield shown


def _tar(folder: str, paths: list[Path], below: Path | None) -> Iterator[bytes]:
    """These files in a folder of this name, without a temporary copy."""
    for path in paths:
        with open_plain(path, below) as file:
            info = tarfile.TarInfo(f"{folder}/{path.name}")
            info.size = file.seek(0, 2)
            file.seek(0)
            yield info.tobuf()
            yield from _exactly(file, info.size)
            if rest := -info.size % tarfile.BLOCKSIZE:
                yield bytes(rest)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _exactly(file: BinaryIO, size: int) -> Iterator[bytes]:
    """As many bytes as the header states, also of a file that was cut meanwhile."""
    while size > 0:
        piece = file.read(min(PIECE, size)) or bytes(min(PIECE, size))
        size -= len(piece)
        yield piece
