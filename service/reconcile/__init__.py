"""Reconciles the jobs of the store with those at Ray: starts, follows, restarts and adopts them.

``supervisor``: the loop; one service on a database runs it at a time
``job_reconciler``: the next state of one job
``capacity``: which waiting jobs can start
``adopt``: jobs that were submitted to Ray directly
``outcome``: how an attempt ended
``removal``: deletes ended jobs
``ray_api``: Ray's Jobs API with timeouts
``embedded_ray``: a Ray head of the service's own
``job_files``: files of a job, read safely
``log_spool``: logs on the service's own disk
"""

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from service.reconcile.ray_api import RayApi, RayUnavailable
    from service.reconcile.supervisor import Supervisor

__all__ = ["RayApi", "RayUnavailable", "Supervisor"]

__getattr__ = lazy(__name__, {"RayApi": "ray_api", "RayUnavailable": "ray_api", "Supervisor": "supervisor"})
