"""What `make dead-letters` says: of which ticket, when, why, and what was in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import redis as redis_library

from broker.keys import Keys
from broker.ledger import DEAD_LETTERS, Ledger
from broker.schema import Kind
from monitoring import dead_letters
from monitoring.letters import PAGE, letters

Bury = Callable[..., None]
Look = Callable[..., list[str]]


@pytest.fixture
def bury(redis: redis_library.Redis, keys: Keys) -> Bury:
    """Set something aside, as the learner does."""

    def write(ticket_id: str, reason: str, payload: bytes = b"", kind: Kind = "train") -> None:
        ledger = Ledger(redis, keys, kind)
        ledger.fence.take_over()
        with ledger.transaction() as pipe:
            ledger.dead_letter(pipe, ticket_id, reason, payload)

    return write


@pytest.fixture
def look(say: Callable[..., str]) -> Look:
    """The verb's lines."""
    return lambda *flags, url="": say(dead_letters.main, *flags, url=url).splitlines()


def test_each_is_a_line_with_its_time_kind_ticket_and_reason_oldest_first(bury: Bury, look: Look) -> None:
    bury("t0000000003", "the engine has a fever")
    bury("e00000000-end-000001", "spans", b"\x93abc", kind="eval")
    first, second, last = look()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \d+-\d+ +train  t0000000003  the engine has a fever", first)
    assert second.endswith("eval   e00000000-end-000001  spans  (4 bytes kept)")
    assert last == "2 dead letters"


def test_none_is_said_in_a_line_and_so_is_what_was_dropped(bury: Bury, look: Look, keys: Keys) -> None:
    assert look() == [f"no dead letters in {keys.run}"]
    for number in range(DEAD_LETTERS + 2):
        bury(f"t{number:010d}", "why")
    lines = look()
    assert lines[-1] == f"{DEAD_LETTERS} dead letters, 2 older ones were dropped"
    assert len(lines) == DEAD_LETTERS + 1


def test_programs_get_an_object_a_line_and_nothing_else(bury: Bury, look: Look) -> None:
    assert look("--json") == []
    bury("t0000000003", "ö\nfever", b"1234")
    (line,) = look("--json")
    found = json.loads(line)
    assert found.keys() == {"id", "time", "kind", "ticket_id", "reason", "payload_bytes"}
    assert (found["kind"], found["ticket_id"], found["reason"]) == ("train", "t0000000003", "ö\nfever")
    assert found["payload_bytes"] == 4
    assert int(found["id"].partition("-")[0]) == pytest.approx(found["time"] * 1000)


def test_a_payload_is_dumped_by_the_id_of_its_letter(bury: Bury, look: Look) -> None:
    bury("t1", "not msgpack", b"\x1b[2J plain text" + bytes(range(4)))
    entry_id = json.loads(look("--json")[0])["id"]
    assert look("--payload", entry_id) == [
        "00000000  1b 5b 32 4a 20 70 6c 61 69 6e 20 74 65 78 74 00  .[2J plain text.",
        "00000010  01 02 03                                         ...",
    ]
    bury("t2", "the engine has a fever")
    assert look("--payload", json.loads(look("--json")[1])["id"]) == ["nothing was kept of it"]


def test_a_stranger_cannot_reach_the_terminal(bury: Bury, look: Look) -> None:
    bury("t\x1b[31m", "one\ntwo\r\u202e")
    line, _ = look()
    assert line.endswith(
        "t\N{REPLACEMENT CHARACTER}[31m       one\N{REPLACEMENT CHARACTER}two" + 2 * "\N{REPLACEMENT CHARACTER}"
    )


@pytest.mark.parametrize("nonsense", ["0-1", "t0000000003", "99999999999999-9", "-", ""])
def test_an_id_that_names_none_is_refused(
    bury: Bury, look: Look, nonsense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bury("t1", "why")
    with pytest.raises(SystemExit, match="2"):
        look("--payload", nonsense)
    assert capsys.readouterr().err.startswith(f"headrace: there is no dead letter {nonsense}".rstrip())


def test_a_redis_that_is_not_there_is_one_line(look: Look, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        look(url="redis://127.0.0.1:1")
    assert capsys.readouterr().err.startswith("headrace: no Redis at 127.0.0.1:1")


def test_pages_are_put_together_without_gap_or_repetition(bury: Bury, redis: redis_library.Redis, keys: Keys) -> None:
    for number in range(2 * PAGE):
        bury(f"t{number}", "why")
    assert [letter.ticket_id for letter in letters(redis, keys)] == [f"t{n}" for n in range(2 * PAGE)]


def test_looking_changes_nothing(bury: Bury, look: Look, redis: redis_library.Redis, keys: Keys) -> None:
    bury("t1", "why", b"payload")
    before = redis.dump(keys.dead_letters)
    look()
    look("--json")
    assert redis.dump(keys.dead_letters) == before
