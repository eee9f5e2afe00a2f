"""What outlives a job.

``cli``: the command ``gradguard``
``app``: the HTTP application: routes, limits, errors
``api``: the HTTP API
``page``: the web page
``reconcile``: starts, follows and restarts jobs
``store``: the database
``settings``: default places
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a jobs.py in the working directory
try:
    import jobs  # noqa: F401
finally:
    del sys.path[0]
