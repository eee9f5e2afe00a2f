"""A token's quota holds however many requests come at a time; every version's database becomes this one's."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from service.store import JobStore, Quota, QuotaExceeded, Tokens, open_database
from service.store.migrate import SCRIPTS
from service.store.models import Base
from tests.service.store.test_store import job

THREADS = 6


def at_once(work: Callable[[int], object]) -> list[bool]:
    """Runs it in threads that begin together; which were not refused."""
    begin, passed = threading.Barrier(THREADS), []

    def run(number: int) -> None:
        begin.wait()
        try:
            work(number)
        except QuotaExceeded:
            passed.append(False)
        else:
            passed.append(True)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return passed


def test_requests_at_a_time_do_not_share_the_last_place_of_a_quota(engine: Engine) -> None:
    Tokens(engine).create("me", "submit", max_jobs=2)
    store, quota = JobStore(engine), Quota("me", max_jobs=2)
    assert at_once(lambda number: store.add(job(f"j{number}"), quota=quota)).count(True) == 2
    assert len(store.page().jobs) == 2


def test_ended_jobs_that_are_resumed_at_a_time_stay_within_the_quota(engine: Engine) -> None:
    Tokens(engine).create("me", "submit", max_gpus=5)
    store, quota = JobStore(engine), Quota("me", max_gpus=5)
    for number in range(THREADS):
        store.add(job(f"j{number}", gpus=2.0))
        store.change(f"j{number}", lambda row: setattr(row, "state", "failed") or "failed")

    def resume(number: int) -> None:
        store.change(f"j{number}", lambda row: setattr(row, "state", "queued") or "queued", quota=quota)

    assert at_once(resume).count(True) == 2
    assert store.counts() == {"queued": 2, "failed": THREADS - 2}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0003", "0002", "0001"])
def test_a_postgresql_database_of_each_version_gets_the_tables_of_this_one(
    postgres_url: str, version: str
) -> None:
    engine = open_database(postgres_url)
    assert differences(engine) == []
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, version)
    assert len(differences(engine)) > 0
    insert_job(engine, f"of-{version}")
    engine.dispose()
    engine = open_database(postgres_url)
    assert differences(engine) == []
    assert JobStore(engine).get(f"of-{version}").tags == []
    assert JobStore(engine).add(job(f"after-{version}", tags=["night"]))[1]
    engine.dispose()


def insert_job(engine: Engine, job_id: str) -> None:
    """A job with the columns of the first version."""
    names = {"id": job_id, "name": "j", "state": "failed", "reason": "", "submitted_by": "me"}
    numbers = dict.fromkeys(
        ("priority", "created", "attempt", "max_restarts", "restarts", "not_before", "cpus", "gpus"), 0
    )
    row = {**names, **numbers, "workers": 1, "log_start": 0, "version": 1, "env": "{}"}
    row |= {"adopted": False, "resume": False}
    places = ", ".join(f":{name}" for name in row)
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({places})"), row)


def differences(engine: Engine) -> list[object]:
    """Between the tables and the models, as Alembic finds them."""
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))
