"""How full the cluster is, and which jobs wait for it."""

import threading
import time

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from service.api.auth import Reader
from service.api.context import Context, Service
from service.api.job_routes import COMMON
from service.api.problems import documented
from service.reconcile import RayUnavailable
from service.reconcile.capacity import RESOURCES, free
from service.reconcile.ray_api import Capacity
from service.store import ACTIVE, PENDING, JobRow

MOST_WAITING = 20
KEPT_S = 5.0
_UNASKED = (float("-inf"), None, "Ray has not been contacted yet")
router = APIRouter(prefix="/v1", responses=documented(*COMMON))


class Resource(BaseModel):
    """GPUs or CPUs of all nodes."""

    name: str
    total: float
    used: float


class Waiting(BaseModel):
    """A job of the queue."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    priority: int
    reason: str
    created: float
    submitted_by: str


class Cluster(BaseModel):
    """The cluster and its queue."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    nodes: int
    resources: list[Resource]
    problem: str = ""
    """Why the resources are unknown."""
    training: int
    waiting: int
    queue: list[Waiting]
    """The first ones that wait, in the order in which they start."""


@router.get("/cluster")
def cluster(http: Request, service: Service, _: Reader) -> Cluster:
    """How full the cluster is, and which jobs wait; at most five seconds old."""
    capacity, problem = http.app.state.capacities.of(service)
    active, waiting = service.store.in_states(ACTIVE), service.store.in_states(PENDING)
    return Cluster(
        nodes=0 if capacity is None else len(capacity.nodes),
        resources=[] if capacity is None else occupancy(capacity, active),
        problem=problem,
        training=len(active),
        waiting=len(waiting),
        queue=[Waiting.model_validate(job) for job in waiting[:MOST_WAITING]],
    )


def occupancy(capacity: Capacity, active: list[JobRow]) -> list[Resource]:
    """The resources that the cluster has; in use is also what a job that has just started will use."""
    left = free(capacity, active)
    return [
        Resource(name=name, total=total, used=total - left[name])
        for name in RESOURCES
        if (total := capacity.total(name))
    ]


class Capacities:
    """The capacity as Ray last gave it: many open pages cause one request for each ``KEPT_S``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Capacity | None, str]] = {}

    def of(self, service: Context) -> tuple[Capacity | None, str]:
        """The capacity, and why it is unknown. While one caller asks Ray the others get the last answer."""
        if service.ray is None:
            return None, "this service has no cluster"
        address = service.ray.address
        asked, *_ = known = self._known.get(address, _UNASKED)
        if time.monotonic() - asked < KEPT_S or not self._lock.acquire(blocking=False):
            return known[1:]
        try:
            found: tuple[Capacity | None, str] = service.ray.capacity(), ""
        except (RayUnavailable, RuntimeError) as error:
            found = None, str(error)
        finally:
            self._lock.release()
        self._known[address] = (time.monotonic(), *found)
        return found
