"""Keeps the jobs of the store and those at Ray the same: starts, watches, starts again, adopts."""

from service.reconcile.ray_api import RayApi, RayGone
from service.reconcile.supervisor import Supervisor

__all__ = ["RayApi", "RayGone", "Supervisor"]
