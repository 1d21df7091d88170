"""`make explain` as a command: the table, the one line where there is nothing, and where it finds Redis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_library

from broker.audit import Note, encode_note
from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.ledger import Ledger
from broker.schema import Ticket
from monitoring import explain
from tests.broker.test_audit import TICKET, answer, sampling, use
from tests.monitoring.fabricated import Run

Look = Callable[..., str]


@pytest.fixture
def look(say: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Look:
    """What the verb prints; what it refuses is its line."""
    monkeypatch.setenv("COLUMNS", "120")

    def said(*arguments: str, url: str = "") -> str:
        try:
            return say(explain.main, *arguments, url=url)
        except SystemExit:
            line = capsys.readouterr().err
            assert line.count("\n") == 1
            return line

    return said


@pytest.fixture
def tell(redis: redis_library.Redis, keys: Keys) -> Callable[[Note], None]:
    def write(note: Note) -> None:
        redis.xadd(keys.audit, {"ticket_id": note.ticket_id, "payload": encode_note(note, 16384)})

    return write


@pytest.fixture
def issued(redis: redis_library.Redis, keys: Keys) -> list[str]:
    """Two tickets that are open, and nothing told of them."""
    ids = [f"t{n:010d}p{7:010d}" for n in range(2)]
    ledger = Ledger(redis, keys)
    ledger.fence.take_over()
    with ledger.transaction() as pipe:
        ledger.issue(pipe, [Ticket(ticket, 7, 0, 0) for ticket in ids])
    return ids


def test_a_group_by_its_id_its_number_or_a_word(tell: Callable[[Note], None], look: Look) -> None:
    tell(sampling(answer("It is 7.")))
    tell(use(generator="host-1"))
    for wanted in (TICKET, "123", TICKET[:12], "best", "worst", "latest", "surprising"):
        said = look(wanted)
        assert "It is 7." in said
        assert "trained in step 4" in said


def test_the_table_holds_the_latest_and_counts_what_cannot_be_read(
    tell: Callable[[Note], None], look: Look, redis: redis_library.Redis, keys: Keys
) -> None:
    for number in range(explain.LATEST + 2):
        tell(sampling(answer(), ticket_id=f"t{number:010d}p0000000045"))
    redis.xadd(keys.audit, {"ticket_id": TICKET, "payload": b"\x80"})
    said = look()
    assert [f"t{n:010d}p" in said for n in (1, 2, explain.LATEST + 1)] == [False, True, True]
    assert "no verdict yet" in said
    assert f"{explain.LATEST + 2} groups in the log" in said
    assert "1 notes that cannot be read are left out" in said


def test_each_absence_has_its_line(
    issued: list[str], tell: Callable[[Note], None], look: Look, redis: redis_library.Redis, keys: Keys
) -> None:
    assert "has no audit log: groups are told of from the first one on, unless broker.audit_entries = 0" in look("1")
    assert "has no audit log" in look()
    tell(use(ticket_id="t0000000001p0000000007"))
    assert f"nobody has told of the group of ticket {issued[0]}, which is not settled yet: `make" in look(issued[0])
    assert "nobody has told of the group of ticket 0, which" in look("0")
    redis.hdel(keys.unsettled("train"), issued[0])
    assert "the group of ticket 0 is not in the audit log any more" in look("0")
    assert "has issued no ticket 2, so far 2 of them" in look("2")
    assert "has issued no ticket t0000000009p0000000001, so far 2" in look("t0000000009p0000000001")
    assert "evaluations are not in the audit log" in look("e00000000-start-000001")
    assert "no group nonsense in the audit log" in look("nonsense")
    redis.flushall()
    assert f"knows no run {keys.run}: see run.name and broker.url" in look("0")
    assert f"knows no run {keys.run}" in look()


def test_a_redis_that_is_not_there_is_one_line(look: Look) -> None:
    assert look("0", url="redis://127.0.0.1:1").startswith("headrace: no Redis at 127.0.0.1:1")


def test_the_data_of_a_run_that_is_over_are_read_from_its_folder_and_stay_as_they_are(
    tmp_path: Path, keys: Keys, look: Look
) -> None:
    folder = tmp_path / keys.run / "redis"
    with EmbeddedServer(folder) as server, redis_library.Redis(port=server.port) as client:
        client.xadd(keys.audit, {"ticket_id": TICKET, "payload": encode_note(sampling(answer("It is 7.")), 16384)})
    kept = {path.name: path.read_bytes() for path in (folder / "appendonlydir").iterdir()}
    for _ in range(2):
        assert "It is 7." in look("123", url=server.url)
    assert {path.name: path.read_bytes() for path in (folder / "appendonlydir").iterdir()} == kept
    with pytest.raises(redis_library.ConnectionError), redis_library.Redis(port=server.port) as gone:
        gone.ping()


def test_a_folder_that_somebody_works_on_is_left_alone(tmp_path: Path, keys: Keys, look: Look) -> None:
    """Its Redis is away for a moment: to start another one on its data would be in the way."""
    run = Run(tmp_path, keys.run)
    run.folder.redis.mkdir()
    hold = run.folder.hold()
    assert hold is not None
    with hold:
        assert look("123", url="redis://127.0.0.1:1").startswith("headrace: no Redis at 127.0.0.1:1")
    assert list(run.folder.redis.iterdir()) == []
