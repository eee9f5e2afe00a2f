"""Valid values of the field ``workload``."""

import re

BUILTIN = {
    "vision": "jobs.workloads.vision:VisionWorkload",
    "language": "jobs.workloads.language:LanguageWorkload",
}
"""Import paths of the built-in workloads by name."""

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""``package.module:Class``"""
