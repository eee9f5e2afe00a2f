"""The error of finding and loading workloads."""


class WorkloadError(ValueError):
    """A workload cannot be used; one line that says what it lacks."""
