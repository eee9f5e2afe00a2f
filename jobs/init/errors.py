"""The error of initializing a model."""

from jobs.workloads.errors import WorkloadError


class InitError(WorkloadError):
    """The model cannot be initialized as asked; one line that says why."""
