"""Reconciles the jobs of the store with those at Ray: starts, follows, restarts and adopts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from service.reconcile.ray_api import RayApi, RayUnavailable
    from service.reconcile.supervisor import Supervisor

__all__ = ["RayApi", "RayUnavailable", "Supervisor"]

__getattr__ = lazy(__name__, {"RayApi": "ray_api", "RayUnavailable": "ray_api", "Supervisor": "supervisor"})
