"""What a job raises for its user: one line that says what is wrong and what to do."""


class JobError(RuntimeError):
    """The job cannot run as asked; nothing was lost. Exit code 2."""


class JobFinished(JobError):
    """The job was to be continued and has finished already. Exit code 0."""
