"""The database: jobs, their attempts and events, tokens, working directories."""

from service.store.engine import open_database
from service.store.errors import KeyReused, NoSuchJob, StoreError, WrongState
from service.store.jobs import JobStore, Page
from service.store.leases import Lease
from service.store.models import ACTIVE, PENDING, AttemptRow, EventRow, JobRow
from service.store.packages import Packages
from service.store.tokens import SCOPES, Caller, Scope, Tokens

__all__ = [
    "ACTIVE",
    "PENDING",
    "SCOPES",
    "AttemptRow",
    "Caller",
    "EventRow",
    "JobRow",
    "JobStore",
    "KeyReused",
    "Lease",
    "NoSuchJob",
    "Packages",
    "Page",
    "Scope",
    "StoreError",
    "Tokens",
    "WrongState",
    "open_database",
]
