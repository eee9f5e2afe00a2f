"""Valid values of the field ``workload``."""

import re

BUILTIN = {
    "vision": "jobs.workloads.vision:VisionWorkload",
    "language": "jobs.workloads.language:LanguageWorkload",
    "huggingface": "jobs.workloads.huggingface:CausalLanguageModel",
}
"""Import paths of the built-in workloads by name."""

HUGGINGFACE_IMAGES = "jobs.workloads.huggingface_images:ImageClassifier"
"""Of ``huggingface``, where the model classifies images."""

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""``package.module:Class``"""
