"""``shifted_clock.py FILE serve ...``: gradguard under a wall clock that is wrong by some seconds.

The clock of the machine stays: files get their times from it, as from a file server whose clock is right.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from service.cli.app import main

_file, _right = Path(sys.argv[1]), time.time


def _shifted() -> float:
    try:
        return _right() + float(_file.read_text())
    except (OSError, ValueError):  # just being written
        return _right()


if __name__ == "__main__":
    time.time = _shifted
    sys.argv = ["gradguard", *sys.argv[2:]]
    main()
