"""Valid values of the field ``workload``."""

import re
from collections.abc import Mapping
from typing import Any

BUILTIN = {
    "vision": "jobs.workloads.vision:VisionWorkload",
    "tabular": "jobs.workloads.tabular:TabularWorkload",
    "language": "jobs.workloads.language:LanguageWorkload",
    "huggingface": "jobs.workloads.huggingface:CausalLanguageModel",
}
"""Import paths of the built-in workloads by name."""

HUGGINGFACE_IMAGES = "jobs.workloads.huggingface_images:ImageClassifier"
"""Of ``huggingface``, where the model classifies images."""

HUGGINGFACE_TEXTS = "jobs.workloads.huggingface_texts:TextClassifier"
"""Of ``huggingface``, where the model classifies texts."""

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""``package.module:Class``"""

TABULAR = "tabular"


def with_tabular_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's document with the defaults of the tabular workload filled in, if that is its workload."""
    filled = dict(data)
    if data.get("workload") == TABULAR:
        for section, default in (("model", {"name": "mlp"}), ("data", {"dataset": "table"})):
            given = data.get(section) or {}
            if isinstance(given, Mapping):
                filled[section] = {**default, **given}
    return filled
