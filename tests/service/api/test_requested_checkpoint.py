"""A checkpoint is requested of a running job only."""

from __future__ import annotations

from pathlib import Path

from tests.service.api.api_fixture import Api, problem


def test_a_job_that_does_not_run_refuses_a_checkpoint(tmp_path: Path) -> None:
    api = Api(tmp_path)
    job_id = api.submitted()
    answer = api.client("submit").post(f"/v1/jobs/{job_id}/checkpoint")
    assert answer.status_code == 409
    assert problem(answer) == f"{job_id} is queued: only a running job saves a checkpoint"
    assert api.client("submit").post("/v1/jobs/none-0/checkpoint").status_code == 404


def test_a_reader_may_not_request_a_checkpoint(tmp_path: Path) -> None:
    api = Api(tmp_path)
    job_id = api.submitted()
    assert api.client("read").post(f"/v1/jobs/{job_id}/checkpoint").status_code == 403
