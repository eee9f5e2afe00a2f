"""The report of a job: one HTML file that needs nothing beside it.

`data` reads the job's files, `summary` and `words` say what happened, `charts` and `heat` draw it,
`page` puts it together.
"""

from jobs.report.page import write_report

__all__ = ["write_report"]
