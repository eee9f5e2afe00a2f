"""The error of finding and using workloads."""


class WorkloadError(ValueError):
    """A workload cannot be used; the text is one line with what is wrong with it."""

    retry = False
