"""What a job raises for its user: one line with what is wrong and what to do."""


class JobError(RuntimeError):
    """The job cannot run with this input; nothing was lost. Exit code 2."""


class JobFinished(JobError):
    """The job to continue has finished already. Exit code 0."""


EXIT_CODES = {"succeeded": 0, "failed": 1, "halted": 3, "stopped": 1}
"""Of a process that trained a job to its end, by the status in result.json."""
BAD_INPUT = 2
INTERRUPTED = 130
