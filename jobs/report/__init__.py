"""The report of a job: one HTML file that is self-contained, and a picture of its main chart.

`data` reads the job's files; `summary`, `cost`, `causes` and `words` describe what happened; `charts` and
`heat` draw it in the style of `plot_style`; `page` and `picture` assemble it. `compare` does the same for
two jobs.
"""

from jobs.report.page import write_page
from jobs.report.picture import write_picture
from jobs.report.write import write_report

__all__ = ["write_page", "write_picture", "write_report"]
