"""What is wrong with the data or the optimizer of a sweep is one line, before Ray and any trial start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.data.errors import DataError
from jobs.spec.errors import SpecError
from jobs.sweep.run import check_data, run_sweep
from jobs.sweep.spec import SweepSpec
from jobs.workloads import WorkloadError

ROWS = "\n".join(["height,label", *(f"{n},{'ab'[n % 2]}" for n in range(20))])


def sweep_of(folder: Path, parameters: dict[str, Any], **base: Any) -> SweepSpec:
    (folder / "rows.csv").write_text(ROWS)
    data = {"root": str(folder / "rows.csv"), "batch_size": 4, **base.pop("data", {})}
    job = {"storage": str(folder / "runs"), "workload": "tabular", "data": data, **base}
    return SweepSpec(name="rates", base=job, parameters=parameters)


@pytest.mark.parametrize(
    ("base", "parameters", "error", "line"),
    [
        ({"data": {"root": "missing.csv"}}, {}, DataError, "missing.csv: there is no such file or folder"),
        ({"workload": "nowhere:Own", "data": {}}, {}, WorkloadError, "nowhere"),
        ({}, {"optimizer.name": ["sgd", "torch.optim:Nope"]}, SpecError, "torch.optim has no Nope"),
        ({}, {"data.columns.label": ["label", "kind"]}, DataError, "there is no column 'kind'"),
    ],
)
def test_the_first_mistake_ends_a_sweep_before_it_has_a_folder(
    tmp_path: Path, base: dict[str, Any], parameters: dict[str, Any], error: type[Exception], line: str
) -> None:
    sweep, shown = sweep_of(tmp_path, parameters or {"optimizer.lr": [0.1, 0.2]}, **base), []
    with pytest.raises(error) as caught:
        run_sweep(sweep, show=shown.append)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert shown == []
    assert not (tmp_path / "runs").exists()


def test_a_sweep_whose_trials_have_other_batches_is_fine(tmp_path: Path) -> None:
    check_data(sweep_of(tmp_path, {"data.batch_size": [2, 4], "optimizer.lr": [0.1, 0.2]}).jobs())
