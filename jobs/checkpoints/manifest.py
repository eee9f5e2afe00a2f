"""``manifest.json``: what a checkpoint holds, a checksum of each file, and whether it is good.

It is written last: a folder without one is no checkpoint. It is replaced as a whole when a candidate becomes
good. Its ``checksum`` covers the rest of the file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, ValidationError

from guard.config import Config
from guard.rows import strict
from jobs.checkpoints.errors import DamagedCheckpoint
from jobs.run_dir.storage import MANIFEST

STATE = "state.json"
FORMAT = 1
_CHUNK = 1 << 20
_YEAR_9999 = 253_402_300_799

Health = Literal["candidate", "good"]


class FileRecord(Config):
    """One file of a checkpoint."""

    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal digest of the content."""


class Manifest(Config):
    """The description of one checkpoint."""

    format: int
    """Version of the layout; an unknown one is refused."""
    step: int = Field(ge=0)
    """Optimizer steps applied."""
    attempt: int = Field(ge=0)
    """Step attempts, skips included."""
    health: Health
    """``candidate`` until enough clean steps followed, then ``good``."""
    created: float = Field(ge=0, le=_YEAR_9999)
    """Unix seconds."""
    world_size: int = Field(ge=1)
    """Ranks that wrote it."""
    files: dict[str, FileRecord]
    """Every file beside the manifest, by name."""
    metrics: dict[str, float]
    """The last evaluation before it."""
    versions: dict[str, str]
    """Of the libraries that wrote it."""
    spec: dict[str, Any]
    """The job's spec."""
    data: dict[str, Any] = Field(default_factory=dict)
    """What it was trained on: ``samples``, ``classes``, ``fingerprint``, ``normalization`` of images, and
    ``model``, the sizes of the network that follow from them; each where it is known."""
    parts: list[str] = Field(default_factory=list)
    """The parts of the state; older than this field: not checked."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    def render(self) -> bytes:
        """The one way in which this manifest is written; ``parse`` accepts no other."""
        body = strict(self.model_dump(mode="python"))
        return _text({**body, "checksum": _digest(body)})


def parse(content: bytes) -> Manifest:
    """Reads a manifest and checks it against its own checksum.

    Raises:
        DamagedCheckpoint: it is not JSON, was changed after it was written, or has another format.
    """
    try:
        body = json.loads(content)
        checksum = body.pop("checksum")
        unchanged = checksum == _digest(body) and _text({**body, "checksum": checksum}) == content
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read") from None
    if not unchanged:
        raise DamagedCheckpoint(f"{MANIFEST} does not match its checksum")
    if body.get("format") != FORMAT:
        raise DamagedCheckpoint(f"{MANIFEST} has format {body.get('format')}; this version reads {FORMAT}")
    try:
        return Manifest.model_validate(body)
    except RecursionError:
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read") from None
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise DamagedCheckpoint(f"{MANIFEST} has no valid {field}") from None


def digest_of(file: Any) -> FileRecord:
    """The record of what an open binary file holds from here to its end."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return FileRecord(size=size, sha256=digest.hexdigest())


def _digest(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _text(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()
