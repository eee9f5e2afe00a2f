"""The audit log over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from service.api.auth import Admin
from service.api.context import Service
from service.api.job_routes import COMMON, Text
from service.api.problems import documented
from service.store import AuditLog

router = APIRouter(prefix="/v1", responses=documented(*COMMON))


class AuditEntry(BaseModel):
    """Something that a caller did."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    seq: int
    time: float
    token: str
    """The name of the token; ``local`` without tokens, ``command line`` or ``retention`` for the service."""
    address: str
    action: str
    """``submit``, ``stop``, ``resume``, ``checkpoint``, ``delete``, ``create token`` or ``revoke token``."""
    subject: str
    """The id of the job, or the name of the token."""
    detail: str


@router.get("/audit")
def audit(
    service: Service,
    _: Admin,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    subject: Text = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[AuditEntry]:
    """Who submitted, stopped, resumed and deleted what; oldest first. It outlives the jobs."""
    rows = AuditLog(service.store.engine).rows(after=after, subject=subject, limit=limit)
    return [AuditEntry.model_validate(row) for row in rows]
