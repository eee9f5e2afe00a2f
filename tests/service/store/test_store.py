"""The store: nothing is lost, nothing is done twice, on SQLite and on PostgreSQL."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from service.store import (
    JobRow,
    JobStore,
    KeyReused,
    Lease,
    NoSuchJob,
    Packages,
    StoreError,
    Tokens,
    open_database,
)
from service.store.jobs import IdempotencyKey


def job(job_id: str, created: float = 1.0, **more: object) -> JobRow:
    return JobRow(
        id=job_id, name="j", state="queued", created=created, submitted_by="me", spec={"a": 1}, env={}, **more
    )


def test_many_who_change_one_job_at_a_time_lose_no_change(engine: Engine) -> None:
    store = JobStore(engine)
    store.add(job("counted"))

    def bump(row: JobRow) -> None:
        row.priority += 1

    def work() -> None:
        for _ in range(10):
            store.change("counted", bump)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("counted").priority == 30


def test_the_same_request_makes_one_job_however_often_and_from_how_many_it_comes(engine: Engine) -> None:
    store, made = JobStore(engine), []

    def hand_in(number: int) -> None:
        made.append(store.add(job(f"j{number}"), IdempotencyKey("me", "key", "digest")))

    threads = [threading.Thread(target=hand_in, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({row.id for row, _ in made}) == 1
    assert [new for _, new in made].count(True) == 1
    assert len(store.page().jobs) == 1
    with pytest.raises(KeyReused, match="another request"):
        store.add(job("other"), IdempotencyKey("me", "key", "other digest"))


def test_pages_list_every_job_once_the_newest_first(engine: Engine) -> None:
    store = JobStore(engine)
    for number in range(7):
        store.add(job(f"j{number}", created=float(number // 2)))  # some at the same moment
    seen, cursor = [], None
    while True:
        page = store.page(cursor=cursor, limit=3)
        seen += [row.id for row in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["j6", "j5", "j4", "j3", "j2", "j1", "j0"]
    assert [row.id for row in store.page(name="3").jobs] == ["j3"]
    assert store.page(states=["running"]).jobs == []


def test_a_deleted_job_leaves_nothing_behind(engine: Engine) -> None:
    store = JobStore(engine)
    store.add(job("gone"), IdempotencyKey("me", "key", "digest"))
    store.add_event("gone", "incident", "warning", "spike", {}, key="1")
    assert not store.add_event("gone", "incident", "warning", "spike", {}, key="1"), (
        "one event is recorded once"
    )
    store.delete("gone", lambda _: None)
    assert store.events(None) == []
    assert store.created_by(IdempotencyKey("me", "key", "digest")) is None
    with pytest.raises(NoSuchJob):
        store.get("gone")


def test_one_of_two_services_supervises_and_a_clock_that_jumps_back_locks_out_neither(engine: Engine) -> None:
    now = 1000.0
    first, second = (Lease(engine, "s", ttl_s=10, clock=lambda: now) for _ in range(2))
    assert (first.hold(), second.hold(), first.hold()) == (True, False, True)
    now += 11
    assert second.hold(), "the holder said nothing for longer than its lease"
    assert not first.hold()
    now -= 500
    assert first.hold(), "a lease that ends far in the future is invalid"
    first.release()
    assert second.hold()


def test_several_services_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    engines: list[Engine] = []
    url = f"sqlite:///{tmp_path}/new.db"
    threads = [threading.Thread(target=lambda: engines.append(open_database(url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 3
    JobStore(engines[0]).add(job("first"))
    assert JobStore(engines[2]).get("first").spec == {"a": 1}
    mode = stat.S_IMODE((tmp_path / "new.db").stat().st_mode)
    assert mode == 0o600, "nobody else on the machine reads the jobs' environment"
    for engine in engines:
        engine.dispose()


def test_a_database_of_a_newer_version_is_unchanged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="made by a newer version"):
        open_database(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "write sqlite:///FILE"),
        ("mysql://localhost/x", "not supported"),
        ("postgresql://u:secret@127.0.0.1:1/x", r"cannot use the database postgresql\+psycopg://u:\*\*\*@"),
        ("sqlite:////proc/no/such.db", "set --database to another file"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_clear_line(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says) as caught:
        open_database(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_tokens_are_kept_as_hashes_and_end_when_they_are_revoked_or_expire(engine: Engine) -> None:
    tokens = Tokens(engine)
    token = tokens.create("anna", "submit")
    caller = tokens.check(token)
    assert caller is not None
    assert (caller.may("read"), caller.may("submit"), caller.may("admin")) == (True, True, False)
    with engine.connect() as connection:
        kept = str(connection.execute(text("SELECT * FROM tokens")).all())
    assert token.rpartition("_")[2] not in kept
    assert tokens.check(token[:-1]) is None
    assert tokens.check("") is None
    tokens.revoke("anna")
    assert tokens.check(token) is None
    assert tokens.check(tokens.create("brief", "read", days=0.0)) is None


def test_a_working_directory_is_kept_once(engine: Engine) -> None:
    packages = Packages(engine)
    assert packages.add(b"zip") == packages.add(b"zip")
    assert packages.content(packages.add(b"zip")) == b"zip"
    assert packages.content("0" * 64) is None
