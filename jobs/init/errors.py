"""The error of initializing a model."""

from jobs.workloads.errors import WorkloadError


class InitError(WorkloadError):
    """The model cannot be initialized this way; the text is one line with the reason."""
