"""The error of finding and loading workloads."""


class WorkloadError(ValueError):
    """A workload cannot be used; the text is one line with what it lacks."""
