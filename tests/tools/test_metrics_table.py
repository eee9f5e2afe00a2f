"""The table of metrics explains every label, and names follow the conventions."""

import re

from guard.record.exposition import FAMILIES
from jobs.observability.hub_server import HUB_FAMILIES
from tests.tools.metrics_table import LABELS


def test_every_label_is_explained() -> None:
    used = {label for family in (*FAMILIES, *HUB_FAMILIES) for label in family.labels}
    assert used | {"job"} == LABELS.keys()


def test_names_follow_the_conventions_of_prometheus() -> None:
    for family in (*FAMILIES, *HUB_FAMILIES):
        assert re.fullmatch(r"gradguard_[a-z_]+", family.exported)
        assert family.exported.endswith("_total") == (family.kind == "counter")
        assert family.kind != "histogram" or family.exported.endswith("_seconds")
        assert family.help.endswith(".")


def test_no_name_is_taken_twice() -> None:
    names = [family.exported for family in (*FAMILIES, *HUB_FAMILIES)]
    assert len(set(names)) == len(names)
