"""What a job trains: the protocol of a workload, the built-in ones, and the way to one's own."""

from jobs.workloads.base import Workload
from jobs.workloads.errors import WorkloadError
from jobs.workloads.load import load_workload

__all__ = ["Workload", "WorkloadError", "load_workload"]
