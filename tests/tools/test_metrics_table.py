"""The table of metrics is that of the code, and names every label with what bounds it."""

import re
from pathlib import Path

from guard.record.exposition import FAMILIES
from jobs.observability.hub_server import HUB_FAMILIES
from tests.tools.metrics_table import LABELS, PATH, table

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_up_to_date() -> None:
    assert ROOT / "guard" / "METRICS.md" == PATH
    assert PATH.read_text() == table(), "run python -m tests.tools.metrics_table"


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
