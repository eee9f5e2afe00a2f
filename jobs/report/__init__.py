"""The report of a job: one HTML file that needs nothing beside it, and a picture of its main chart.

`data` reads the job's files, `summary`, `cost`, `causes` and `words` put what happened into figures and
sentences, `charts` and `heat` draw it, `page` and `picture` put it together. `compare` does the same for two
jobs.
"""

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from jobs.report.page import write_page
    from jobs.report.picture import write_picture
    from jobs.report.write import write_report

__all__ = ["write_page", "write_picture", "write_report"]

__getattr__ = lazy(__name__, {"write_page": "page", "write_picture": "picture", "write_report": "write"})
