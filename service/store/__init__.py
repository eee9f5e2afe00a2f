"""The database: jobs, their attempts and events, tokens, working directories.

``engine``: SQLite or PostgreSQL
``models``: the tables
``same_file``: a SQLite file that is deleted or replaced
``migrate``: brings a database to this version
``migrations``: the steps on that way, by Alembic
``jobs``: jobs, each change a compare-and-swap
``packages``: working directories
``tokens``: who may do what
``audit``: who did what
``quota``: how much a token may have at a time
``leases``: which of several services supervises
``errors``: what the store raises
"""

from service.store.audit import AuditLog, entry
from service.store.engine import open_database
from service.store.errors import KeyReused, NoSuchJob, QuotaExceeded, StoreError, WrongState
from service.store.jobs import JobStore
from service.store.leases import Lease
from service.store.models import ACTIVE, PENDING, AttemptRow, EventRow, JobRow
from service.store.packages import Packages
from service.store.quota import Quota
from service.store.tokens import SCOPES, Caller, Scope, Tokens

__all__ = [
    "ACTIVE",
    "PENDING",
    "SCOPES",
    "AttemptRow",
    "AuditLog",
    "Caller",
    "EventRow",
    "JobRow",
    "JobStore",
    "KeyReused",
    "Lease",
    "NoSuchJob",
    "Packages",
    "Quota",
    "QuotaExceeded",
    "Scope",
    "StoreError",
    "Tokens",
    "WrongState",
    "entry",
    "open_database",
]
