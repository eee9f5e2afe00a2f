"""The report of a job: one self-contained HTML file, and a picture of its main chart.

``page``: the HTML file
``picture``: the chart; writes both
``compare``: two jobs side by side
``data``: reads the job's files
``checkpoints``: what became of them
``summary``: key figures
``cost``: where the time went
``profile``: the operators of a profile; memory of the GPU
``causes``: which layer left its baseline first
``words``: sentences
``advice``: what to do after an incident
``cards``: incidents as cards
``bad_samples``: which samples made batches bad, how often
``spec_parts``: what differs from the defaults, and the whole spec
``hover``: values under the pointer
``formats``: numbers as text
``charts``: line charts
``heat``: heat maps
``overlay``: two runs in one chart
``series``: thinning that keeps every spike
``plot_style``: sizes, scales, ticks
``colors``: colours
``svg``: from a figure to inline SVG
"""

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from jobs.report.page import write_page
    from jobs.report.picture import write_picture, write_report

__all__ = ["write_page", "write_picture", "write_report"]

__getattr__ = lazy(__name__, {"write_page": "page", "write_picture": "picture", "write_report": "picture"})
