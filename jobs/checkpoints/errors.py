"""What can be wrong with a checkpoint."""

from __future__ import annotations

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DamagedCheckpoint(Exception):
    """A checkpoint differs from what was written; the text names the file and the fault."""


class UnsupportedState(TypeError):
    """A part's ``state_dict`` contains something that cannot be stored without running code on load."""


def cause(error: BaseException) -> BaseException:
    """The first rank's own error, where torch.distributed.checkpoint has wrapped those of all ranks."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


def reason(error: BaseException) -> str:
    """Why a checkpoint could not be written, in one line; of several ranks' causes the first."""
    error = cause(error)
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {line}"
    text = error.strerror or line
    return f"{text}; is the disk full?" if error.errno in _FULL else text
