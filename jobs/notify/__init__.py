"""Notices of a job: one sentence, a link and a chart, to whom the spec names.

``notice``: what it says
``chart``: the run as it is now
``senders``: how each kind of receiver gets it
``notifier``: sends in the background, so many an hour, and counts
"""

from jobs.notify.notice import Notice as Notice
from jobs.notify.notifier import Notifier as Notifier
