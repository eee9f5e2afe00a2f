"""Keeps the jobs of the store and those at Ray the same: starts, watches, restarts, adopts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from service.reconcile.ray_api import RayApi, RayGone
    from service.reconcile.supervisor import Supervisor

__all__ = ["RayApi", "RayGone", "Supervisor"]

__getattr__ = lazy(__name__, {"RayApi": "ray_api", "RayGone": "ray_api", "Supervisor": "supervisor"})
