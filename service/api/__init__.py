"""The HTTP API.

``context``: what handlers work with
``job_routes``: submit, list, stop, resume, clone, delete
``file_routes``: log, events, metrics, checkpoints, report
``artefact_routes``: the files of a job and its checkpoints, as streams
``audit_routes``: who did what
``admission``: which job is accepted
``archives``: uploaded working directories
``view``: a job as shown to callers, without secrets
``problems``: errors as problem documents
``auth``: tokens and scopes
``limits``: sizes and rates
``callers``: whose requests count together
``http_protocol``: slow clients
``own_metrics``: health and Prometheus
"""

from service.api.context import Context, Limits

__all__ = ["Context", "Limits"]
