"""A database that is deleted, replaced or full: nothing is said to be stored that is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster.session import PACKAGE_ROOT
from service.store import JobStore, StoreError, open_database
from tests.integration.deaths.test_full_disk import ISOLATED, can_mount
from tests.service.api.api_fixture import SPEC, Api, problem
from tests.service.cli.test_first_mistakes import documented
from tests.service.store.test_store import job


def submit(api: Api) -> tuple[int, str]:
    answer = api.client().post("/v1/jobs", json={"spec": SPEC})
    return answer.status_code, "" if answer.status_code == 201 else problem(answer)


def test_after_the_database_was_deleted_no_job_is_accepted(tmp_path: Path) -> None:
    api = Api(tmp_path)
    assert submit(api)[0] == 201
    for path in tmp_path.glob("service.db*"):
        path.unlink()
    status, why = submit(api)
    assert status == 503
    assert f"the database {tmp_path}/service.db is gone" in why
    assert api.client(None).get("/healthz").status_code == 200
    assert api.client().get("/readyz").status_code == 503
    assert not (tmp_path / "service.db").exists(), "no empty one takes its place"


def test_a_database_that_is_deleted_within_a_transaction_loses_nothing_silently(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/s.db")
    store = JobStore(engine)
    store.add(job("first"))

    def edit(_: object) -> str:
        (tmp_path / "s.db").unlink()
        return "changed"

    with pytest.raises(StoreError, match="is gone"):
        store.change("first", edit)
    engine.dispose()


def test_a_database_that_was_replaced_is_not_used_until_the_service_starts_again(
    tmp_path: Path,
) -> None:
    api = Api(tmp_path)
    kept = api.submitted()
    with api.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(tmp_path / "service.db", tmp_path / "backup")
    api.submitted()
    (tmp_path / "backup").replace(tmp_path / "service.db")
    status, why = submit(api)
    assert (status, why) == (503, f"the database {tmp_path}/service.db was replaced: start the service again")
    api.engine.dispose()
    again = open_database(f"sqlite:///{tmp_path}/service.db")
    assert kept in [row.id for row in JobStore(again).page().jobs]
    again.dispose()


FULL = """
import os, sys
from pathlib import Path
from tests.service.api.api_fixture import Api
from tests.service.store.test_lost_database import submit

disk = Path(sys.argv[1])
api = Api(disk)
accepted = 0
with (disk / "ballast").open("wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError:
        pass
for _ in range(200):
    status, why = submit(api)
    if status != 201:
        break
    accepted += 1
stored = lambda: len(api.client().get("/v1/jobs", params={"limit": 500}).json()["jobs"])
print(status, stored() == accepted, why)
(disk / "ballast").unlink()
print(submit(api)[0], stored() == accepted + 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
def test_on_a_full_disk_no_job_is_accepted_and_afterwards_the_service_continues(tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(FULL)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=4m none {disk} && {sys.executable} {tmp_path}/full.py {disk}"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)}
    run = subprocess.run(
        [*ISOLATED, command], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    first, second = run.stdout.splitlines()
    line = documented("At a service")["a full disk of the service"][1]
    assert first == f"503 True {line}", run.stderr
    assert second == "201 True"
