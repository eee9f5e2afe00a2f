"""The spec of a job: one YAML or JSON file, checked before anything starts.

``job_spec`` is the whole; the other modules are its sections, and how it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from jobs.spec.errors import SpecError
    from jobs.spec.job_spec import JobSpec

__all__ = ["JobSpec", "SpecError"]

__getattr__ = lazy(__name__, {"JobSpec": "job_spec", "SpecError": "errors"})
