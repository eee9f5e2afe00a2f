"""What an error of a training means: its cause, one line with what to do, and whether another try can help.

Errors of Ray's own types, and which of several ranks failed first, are in ``jobs.cluster.failures``.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Cause = Literal["job", "out_of_memory", "worker_lost", "stalled", "cluster"]
"""Why a job failed. A service starts it again where the cause is ``cluster``.

``job``: its own code raised an error, or crashed. ``out_of_memory``: the memory of the GPU or of the node was
full. ``worker_lost``: a worker process died. ``stalled``: a worker did not answer within
``scale.stall_timeout_s``. ``cluster``: Ray Train's controller or the head of the cluster died.
"""

CAUSES: tuple[Cause, ...] = get_args(Cause)

LONGEST_LINE = 300
OURS = Path(__file__).resolve().parents[1]
_LESS = "lower data.batch_size or the model, raise train.micro_batches"


class Failure(NamedTuple):
    """Why a training failed: a cause for programs, a line for the user."""

    cause: Cause
    line: str
    retry: bool = True
    """Whether another try from the last checkpoint can end otherwise."""


_KNOWN: tuple[tuple[str, Failure], ...] = (
    (
        r"(CUDA|HIP|XPU|MPS)\b.*out of memory|CU[A-Z]+_STATUS_ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY"
        r"|cudaErrorMemoryAllocation|torch\.OutOfMemoryError",
        Failure("out_of_memory", f"the GPU's memory is full: {_LESS}, or set train.precision: bf16"),
    ),
    (
        r"DefaultCPUAllocator: .*allocate memory|\bMemoryError\b|Cannot allocate memory",
        Failure("out_of_memory", f"the memory of this machine is full: {_LESS}, or train with fewer workers"),
    ),
    (
        r"device-side assert",
        Failure(
            "job",
            "a kernel on the GPU met an index out of range, such as a label that is not below the number of "
            "classes or a token that is not in the vocabulary; with scale.device: cpu the line is named",
            retry=False,
        ),
    ),
    (
        r"illegal memory access|unspecified launch failure",
        Failure(
            "job", "a kernel on the GPU accessed memory that is not its own: CUDA_LAUNCH_BLOCKING=1 names it"
        ),
    ),
    (
        r"CUDA driver version is insufficient|Found no NVIDIA driver|no kernel image is available",
        Failure("job", "this PyTorch and the GPU's driver do not fit together", retry=False),
    ),
    (
        r"Expected to have finished reduction in the prior iteration",
        Failure(
            "job",
            "parameters get no gradient in some steps, which training with several workers needs; let the "
            "loss use them in each step, freeze them with requires_grad_(False), or set scale.workers to 1",
            retry=False,
        ),
    ),
    (
        r"shapes cannot be multiplied|must match the size of tensor|size mismatch, got input"
        r"|(must|to) have (the )?same dtype|expected (m1 and m2|scalar type|input.* to have \d+ channels)"
        r"|Input type .* and weight type|Given (groups|normalized_shape)=|running_mean should contain"
        r"|must be equal to input_size|expected target dtype|to match target batch_size"
        r"|is invalid for input of|Expected size for first|must have same number of dimensions"
        r"|of the following scalar types|does not match weight dtype",
        Failure("job", "the sizes or types of two tensors do not fit", retry=False),
    ),
    (
        r"in DataLoader worker|DataLoader worker .*(killed|exited|bus error)|unable to mmap",
        Failure(
            "job",
            "a process that reads data failed; a small /dev/shm is a common reason: set data.workers: 0",
        ),
    ),
    (
        r"Timed out waiting \d+ ?ms|collective operation timeout",
        Failure(
            "job",
            "a rank waited for another one longer than scale.timeout_s, which was slower, or called another "
            "collective",
        ),
    ),
)
"""Patterns in an error's type and text, and what they mean; the first that fits counts."""
_MISTAKES = (NameError, AttributeError, TypeError, ImportError, NotImplementedError, SyntaxError)
"""Of the code itself: the batch that comes again after a restart meets them again."""


def explain_error(error: BaseException) -> Failure:
    """What one exception means, with its own words and the line of the user's code that it came from."""
    known_to_us = hasattr(error, "retry")  # its text is the whole line
    own = str(error) if known_to_us else first_line(error)
    text = f"{type(error).__module__}.{type(error).__name__}: {_text_of(error)}"
    for pattern, known in () if known_to_us else _KNOWN:
        if found := re.search(pattern, text, re.IGNORECASE):
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []) if "\n" not in note)
            return known._replace(line=f"{known.line}{notes}{where(error)}: {_detail(text, found.start())}")
    place = "" if known_to_us else where(error)
    retry = getattr(error, "retry", not isinstance(error, _MISTAKES))
    return Failure(getattr(error, "cause_of_failure", "job"), own + place, retry)


def first_line(error: BaseException | None) -> str:
    """The type and the text of an error, in one line."""
    lines = [line.strip() for line in _text_of(error).splitlines() if line.strip()]
    text = lines[-1] if lines else "no message"
    return f"{type(error).__name__}: {text}"[:LONGEST_LINE]


def _text_of(error: BaseException | None) -> str:
    """Its text, unless that raises an error too."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - of somebody else's class
        return "its text cannot be shown"


def where(error: BaseException) -> str:
    """The innermost line of the user's own code that raised an error, in parentheses; empty if it is ours."""
    found = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
    return f" ({frame_text(found[-1])})" if found else ""


def frame_text(frame: traceback.FrameSummary) -> str:
    """``loss, line 12 of mine.py``."""
    return f"{frame.name}, line {frame.lineno} of {Path(frame.filename).name}"


def is_users(filename: str) -> bool:
    """Whether a file is neither a library's nor ours."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    roots = [*libraries, sys.prefix, *(str(OURS / package) for package in ("guard", "jobs", "service"))]
    return not filename.startswith(("<", *roots)) and "-packages/" not in filename


def crash_line(dump: Sequence[str]) -> str | None:
    """What a process died of, from what ``faulthandler`` wrote; None if it wrote nothing."""
    fatal = next((line for line in dump if line.startswith("Fatal Python error: ")), None)
    if fatal is None:
        return None
    signal = fatal.removeprefix("Fatal Python error: ").strip().lower()
    start = next((at for at, line in enumerate(dump) if line.startswith("Current thread")), 0)
    frames = re.findall(r'File "(.+?)", line (\d+) in (.+)', "\n".join(dump[start:]))
    own = [frame for frame in frames if is_users(frame[0])] or frames
    place = f" in {own[0][2]}, line {own[0][1]} of {Path(own[0][0]).name}" if own else ""
    return f"the worker process crashed: {signal}{place}"


def _detail(text: str, place: int) -> str:
    """The line of a long message that says what happened: CUDA appends paragraphs."""
    line = text[text.rfind("\n", 0, place) + 1 :].partition("\n")[0].removeprefix("builtins.")
    return line if len(line) <= LONGEST_LINE // 2 else line[: LONGEST_LINE // 2 - 3] + "..."
