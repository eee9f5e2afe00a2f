"""What outlives a job: the command line."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a jobs.py in the working directory
try:
    import jobs  # noqa: F401
finally:
    del sys.path[0]
