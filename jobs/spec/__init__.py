"""The spec of a job: one YAML or JSON file, checked before anything starts.

``job_spec`` is the whole. ``sections``, ``data``, ``augment``, ``init``, ``optim``, ``regularize``,
``parallel``, ``notify``, ``language`` and ``huggingface`` define its fields; ``workload_checks``,
``parallel_checks`` and ``cross_checks`` what they require of each other; ``odd_characters`` those that look
like others;
``workload_names`` the built-in workloads; ``imported`` modules of the user's; ``load``, ``yaml_text``,
``override``, ``schema`` and ``errors`` how a file is read and its errors reported; ``masking`` hides
secrets where a spec is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from jobs.spec.errors import SpecError
    from jobs.spec.job_spec import JobSpec

__all__ = ["JobSpec", "SpecError"]

__getattr__ = lazy(__name__, {"JobSpec": "job_spec", "SpecError": "errors"})
