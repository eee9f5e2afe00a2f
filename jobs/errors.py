"""What a job raises for its user, one line that names the problem and the fix; and how a job ends."""


class JobError(RuntimeError):
    """The job cannot run with this input; nothing was lost. Exit code 2."""


class JobBusy(JobError):
    """Another process trains this job now. Exit code 4."""


class JobInterrupted(JobError):
    """Ctrl-C while something else goes on, which the text names. Exit code 130."""


class JobFinished(JobError):
    """The job to continue has finished already. Exit code 0."""


EXIT_CODES = {"succeeded": 0, "failed": 1, "halted": 3, "stopped": 1}
"""Of a process that trained a job to its end, by the status in result.json."""

ENDED: frozenset[str] = frozenset(EXIT_CODES)
"""The statuses in which a job stays."""

FAILED = 1
BAD_INPUT = 2
BUSY = 4
INTERRUPTED = 130


def exit_code_of(error: BaseException) -> int:
    """Exit code of a command that ends with an error of its user."""
    codes = {JobBusy: BUSY, JobInterrupted: INTERRUPTED}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), BAD_INPUT)
