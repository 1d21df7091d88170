"""Each role does all of its work with its own user, and nothing that is another's: on a real server, from the ACL file.

The file is loaded by the server as a user would have it loaded. `root` is this test's own user, who looks on.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from broker import acl
from broker.audit_log import AuditLog
from broker.card import PartCard, TaskCard
from broker.connection import connect, require
from broker.embedded import EmbeddedServer
from broker.errors import Fenced, Refused
from broker.joining import Fingerprint, agree, announce, join, read_task, register_task
from broker.keys import GENERATORS, LEARNER, Keys
from broker.ledger import Entry, Ledger
from broker.patience import Patience
from broker.policies import FetchingReader, ShippingStore
from broker.policy import PolicyStore
from broker.roles import ROLES, Role, rules
from broker.schema import tombstone
from broker.settings import BrokerSettings
from broker.streams import Arrival, RolloutStream, create_groups, forget_generators
from broker.ticket_id import TicketId
from broker.tickets import TicketStream
from consumer.buffer import Held
from consumer.dispatch import Dispatch
from consumer.evaluation import Evaluator
from monitoring.reading import Reading
from monitoring.requeue import requeue
from monitoring.trail import Trail
from tests.broker.test_audit import answer, sampling, use
from tests.broker.test_streams import LEASE, age, group_of
from tests.consumer.desk import FLOW

RUN = "guarded"
FINGERPRINT = Fingerprint("m", "t", 2, 1.0, 8, False)
CARD = TaskCard("sums", 7, 0, "hash", (PartCard("sums", 7),))
Stage = dict[str, redis_library.Redis]


@dataclass(frozen=True)
class Door:
    """A server whose users come from an ACL file."""

    server: EmbeddedServer
    secrets: Path

    def client(self, user: str) -> redis_library.Redis:
        if user == "root":
            return redis_library.Redis(port=self.server.port, username="root", password="root")
        settings = BrokerSettings(
            url=self.server.url.replace("://", f"://{user}@"), password_file=self.secrets / f"{user}.password"
        )
        assert settings.url
        return connect(settings, settings.url, blocking_seconds=1.0)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    secrets = tmp_path_factory.mktemp("secrets")
    path = acl.write(secrets, RUN, {})
    path.write_text(path.read_text() + "user root on >root ~* &* +@all\n")
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), acl=secrets) as server:
        yield Door(server, secrets)


@pytest.fixture
def clients(door: Door) -> Iterator[dict[str, redis_library.Redis]]:
    """One of each role, and root, on an empty database; and nothing that they do is refused by the way."""
    found = {user: door.client(user) for user in (*ROLES, "root")}
    found["root"].flushall()
    found["root"].execute_command("ACL", "LOG", "RESET")
    yield found
    for client in found.values():
        client.close()


def refusals(root: redis_library.Redis) -> list[tuple[str, str, str]]:
    """What the server refused, but for a client library's introduction of itself, which Redis 7.0 could not allow."""
    entries: Any = root.execute_command("ACL", "LOG")
    found = [(e["username"], e["reason"], e["object"]) for e in map(_text, entries)]
    return [entry for entry in found if "setinfo" not in entry[2].lower()]


def _text(entry: Any) -> dict[str, str]:
    pairs = entry.items() if isinstance(entry, dict) else zip(entry[::2], entry[1::2], strict=True)
    return {_str(k): _str(v) for k, v in pairs}


def _str(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# -- what they may ----------------------------------------------------------------------------------------------------


@dataclass
class Play:
    """A run in which learner and generator have a client each, and nothing else in common but a folder."""

    learner: redis_library.Redis
    generator: redis_library.Redis
    root: redis_library.Redis
    folder: Path

    def __post_init__(self) -> None:
        self.keys = Keys(RUN)
        for client in (self.learner, self.generator):
            require(client)
            create_groups(client, self.keys)
        announce(self.learner, self.keys, FINGERPRINT, "{}")
        join(self.generator, self.keys, FINGERPRINT)
        register_task(self.generator, self.keys, CARD)
        register_task(self.generator, self.keys, CARD)
        assert read_task(self.learner, self.keys) == CARD
        self.ledger = Ledger(self.learner, self.keys)
        self.ledger.fence.take_over()
        self.policy = PolicyStore(self.learner, self.keys, self.folder, 2, 60.0)
        self.reader = PolicyStore(self.generator, self.keys, self.folder, 2, 60.0)
        self.dispatch = Dispatch(self.ledger, self.policy, FLOW)
        self.evaluation = Ledger(self.learner, self.keys, "eval", self.ledger.fence)
        self.rollouts = RolloutStream(self.learner, self.learner, self.keys)
        self.upload(0)
        self.dispatch.open(0)

    def upload(self, version: int) -> None:
        self.policy.write(version, lambda folder: _fill(folder, version))

    def stream(self, name: str) -> TicketStream:
        return TicketStream(self.generator, self.generator, self.keys, name, LEASE, 3)


def _fill(folder: Path, version: int) -> None:
    (folder / "weights").write_text(str(version))


@pytest.fixture
def play(clients: dict[str, redis_library.Redis], tmp_path: Path) -> Play:
    return Play(clients["learner"], clients["generator"], clients["root"], tmp_path / "policy")


def test_a_run_from_ticket_to_checkpoint(play: Play) -> None:
    one, other = play.stream("one"), play.stream("other")
    claims = one.claim(4, block_seconds=0.2)
    assert len(claims) == 4
    assert one.renew(claims) == {claim.entry_id for claim in claims}
    assert one.give_back(claims.pop())
    age(play.root, play.keys)
    (taken,) = other.claim(1)
    assert taken.suspect
    other.publish(taken, group_of(taken, "other"))
    assert not one.publish(taken, group_of(taken, "one"))  # late
    for claim in claims:
        one.publish(claim, group_of(claim, "one"))
    arrived = play.rollouts.claim(10, 0.2)
    assert len(arrived) == len(play.rollouts.pending()) == 3
    batch = [Held(a.entry_id, a.group) for a in arrived if a.group is not None]
    play.dispatch.consume([(batch[0], "degenerate")])
    play.dispatch.take(batch[1:])
    play.upload(1)
    play.dispatch.commit(1, 1, [held.group.ticket_id for held in batch[1:]], publish=True)
    play.dispatch.make_final(play.dispatch.journal, 1, dict(play.dispatch.entry_ids), 0)
    assert play.ledger.balance().balanced
    assert play.ledger.verdicts() == {"degenerate": 1, "trained": 2}
    assert refusals(play.root) == []


def test_malformed_messages_and_tickets_beyond_their_deliveries(play: Play) -> None:
    play.root.xadd(play.keys.rollouts("train"), {"ticket_id": "t0000000000", "payload": b"\x93"})
    for arrival in play.rollouts.claim(10, 0.2):
        play.dispatch.refuse(arrival, arrival.malformed)
    play.dispatch.discard(Arrival(b"0-1", "train", "nobody's", None, "unknown"), "unknown")
    for owner in ("a", "b", "c", "d"):
        play.stream(owner).claim(1, block_seconds=0)
        age(play.root, play.keys)
    assert play.root.xlen(play.keys.dead_letters) == 2
    assert refusals(play.root) == []


def test_a_reader_leases_versions_and_sees_the_pointer_move(play: Play) -> None:
    assert play.reader.wait(-1, 1.0) == 0
    play.reader.lease("one", 0)
    play.reader.open(0)
    for version in (1, 2, 3):
        play.upload(version)
        with play.ledger.transaction() as pipe:
            play.policy.point(pipe, version)
    assert play.policy.prune() == [1]
    play.reader.release("one")
    assert play.policy.prune() == [0]
    assert play.reader.wait(0, 1.0) == 3
    assert play.reader.wait(3, 0.1) is None
    assert refusals(play.root) == []


def test_weights_travel_through_redis(play: Play, tmp_path: Path) -> None:
    store = ShippingStore(play.learner, play.keys, tmp_path / "own", 2, 60.0, play.ledger.fence)
    reader = FetchingReader(play.generator, play.keys, 60.0)
    for version in (0, 1, 2, 3):
        store.write(version, lambda folder, version=version: _fill(folder, version))  # type: ignore[misc]
        with play.ledger.transaction() as pipe:
            store.point(pipe, version)
    reader.lease("one", 1)
    assert (reader.open(1) / "weights").read_text() == "1"
    assert store.prune() == [0]
    store.write(4, lambda folder: _fill(folder, 4))
    store.write(4, lambda folder: _fill(folder, 44), replace=True)
    reader.close()
    assert refusals(play.root) == []


def test_an_evaluation_and_the_end_of_a_run(play: Play) -> None:
    records: list[Any] = []
    evaluator = Evaluator(play.evaluation, 2, 0, records.append)
    evaluator.start(0, "start")
    evaluator.resume()
    one = play.stream("one")
    for claim in one.claim(2, block_seconds=0):
        one.publish(claim, group_of(claim, "one"))
    for arrival in play.rollouts.claim(10, 0.2):
        evaluator.add(arrival)
    assert records[0]["samples"] == 4
    play.generator.hset(play.keys.generators, "one", "1.0")
    assert play.learner.hgetall(play.keys.generators)
    play.generator.hdel(play.keys.generators, "one")
    play.learner.set(play.keys.finished, "finished")
    assert play.generator.exists(play.keys.finished)
    assert refusals(play.root) == []


def test_a_second_learner_takes_over_and_finds_what_was(play: Play) -> None:
    again = Ledger(play.learner, play.keys)
    again.fence.take_over()
    agree(play.learner, play.keys, FINGERPRINT)
    dispatch = Dispatch(again, play.policy, FLOW)
    dispatch.resume(play.policy.newest() or 0)
    dispatch.refill()
    assert len(dispatch.waiting()) == FLOW.capacity
    with pytest.raises(Fenced), play.ledger.transaction():
        pass
    assert refusals(play.root) == []


def test_what_redis_has_lost_is_made_anew_and_what_nobody_heard_is_found(play: Play) -> None:
    cut = play.ledger.cut()
    with play.ledger.transaction() as pipe:
        page = cut.pages["train"]
        play.ledger.rewrite(pipe, page, play.dispatch.tickets(page))
        play.evaluation.rewrite(pipe, cut.pages["eval"], [])
        play.policy.point(pipe, 0)
    assert play.ledger.balance().balanced
    patience = Patience(0.0)
    generator = TicketStream(play.generator, play.generator, play.keys, "one", LEASE, 3, patience)
    (unheard,) = generator.claim(1, block_seconds=0)
    patience.connected()
    assert [claim.entry_id for claim in generator.claim(1, block_seconds=0)] == [unheard.entry_id]
    assert generator.publish(unheard, group_of(unheard, "one"))
    (arrival,) = play.rollouts.claim(1, 0)
    assert play.rollouts.holds("train", arrival.entry_id)
    assert play.rollouts.pending()
    assert forget_generators(play.learner, play.keys, 3600.0) == 0
    assert refusals(play.root) == []


def test_a_learner_may_begin_its_run_anew_in_one_transaction(play: Play) -> None:
    keys = play.keys
    old = [keys.tickets("train"), keys.rollouts("train"), keys.unsettled("train"), keys.ledger("train"), keys.journal]
    with play.ledger.transaction() as pipe:
        pipe.delete(*old)
        pipe.unlink(keys.policy)
        pipe.xgroup_create(keys.tickets("train"), GENERATORS, id="0", mkstream=True)
        pipe.xgroup_create(keys.rollouts("train"), LEARNER, id="0", mkstream=True)
        pipe.xadd(keys.tickets("train"), {"ticket_id": "t", "payload": b""})
        pipe.hset(keys.unsettled("train"), "t", "0 1.0")
        pipe.rpush(keys.journal, Entry(1, 1, True, ("t",)).encode())
        pipe.set(keys.policy, 1)
    assert play.root.xlen(keys.tickets("train")) == 1
    assert refusals(play.root) == []


def test_a_monitor_sees_the_books_and_an_admin_mends_them(play: Play, clients: dict[str, Any]) -> None:
    monitor, admin, keys = clients["monitor"], clients["admin"], play.keys
    require(monitor)
    assert all(balance.balanced for balance in Reading.take(monitor, keys, 0.0).balances.values())
    monitor.xinfo_stream(keys.tickets("train"))
    monitor.xinfo_groups(keys.tickets("train"))
    monitor.memory_usage(keys.tickets("train"))
    entries = admin.xrange(keys.tickets("train"), count=1)
    admin.xdel(keys.tickets("train"), entries[0][0])
    admin.xadd(keys.tickets("train"), entries[0][1])
    admin.xgroup_delconsumer(keys.tickets("train"), GENERATORS, "dead")
    assert refusals(play.root) == []


def test_an_admin_asks_for_a_problem_again_and_the_learner_issues_it(play: Play, clients: dict[str, Any]) -> None:
    failed, other = play.stream("one").claim(2, block_seconds=0)
    play.stream("one").publish(failed, tombstone(failed.ticket, "a fever"))
    (arrival,) = play.rollouts.claim(10, 0.2)
    play.dispatch.refuse(arrival, "a fever")
    require(clients["admin"])
    requeue(clients["admin"], play.keys, [failed.ticket.ticket_id])
    assert clients["monitor"].llen(play.keys.requeue) == 1
    play.stream("one").publish(other, tombstone(other.ticket, "a fever"))
    (arrival,) = play.rollouts.claim(10, 0.2)
    play.dispatch.refuse(arrival, "a fever")
    assert list(play.dispatch.waiting())[-1] == str(TicketId(7, failed.ticket.problem))
    assert play.ledger.balance().balanced
    assert refusals(play.root) == []


def test_generator_and_learner_tell_the_audit_log_and_a_monitor_reads_it(
    play: Play, clients: dict[str, Any], door: Door
) -> None:
    for role, note in (("generator", sampling(answer())), ("learner", use(generator="host-1"))):
        file = door.secrets / f"{role}.password"
        url = door.server.url.replace("://", f"://{role}@")
        log = AuditLog.of(BrokerSettings(url=url, password_file=file), url, play.keys)
        log.write(note.ticket_id, lambda note=note: note)  # type: ignore[misc]
        log.close()
        assert log.lost == 0
    trail = Trail.read(clients["monitor"], play.keys)
    assert [(life.sampling is not None, life.use is not None) for life in trail.lives] == [(True, True)]
    assert refusals(play.root) == []


# -- what they may not ------------------------------------------------------------------------------------------------

K = Keys(RUN)
OTHER = Keys("another")


def script(*command: str) -> tuple[str, ...]:
    """The same from inside a script, with a key that the role may use for scripts."""
    return ("EVAL", "return redis.call(unpack(ARGV))", "1", K.tickets("train"), *command)


SERVER: list[tuple[str, ...]] = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("DEBUG", "SLEEP", "0"),
    ("SHUTDOWN", "NOSAVE"),
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "FLUSH"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "me", "on", "nopass", "+@all"),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("MIGRATE", "127.0.0.1", "1", K.policy, "0", "1"),
    ("MODULE", "LIST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "PAUSE", "1"),
    ("MONITOR",),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("SWAPDB", "0", "1"),
    ("BGREWRITEAOF",),
    ("SAVE",),
    ("SLOWLOG", "GET"),
    ("PSUBSCRIBE", "*"),
    ("SUBSCRIBE", "elsewhere"),
    ("SUBSCRIBE", OTHER.policy),
    ("PUBLISH", OTHER.policy, "1"),
    ("GET", OTHER.recipe),
    ("SET", OTHER.policy, "1"),
    ("XADD", OTHER.tickets("train"), "*", "a", "b"),
    ("DEL", OTHER.tickets("train")),
    ("GET", "somebody's"),
    ("SET", "somebody's", "1"),
    script("SET", "somebody's", "1"),
    script("FLUSHALL"),
    ("RENAME", K.policy, OTHER.policy),
    ("COPY", K.policy, OTHER.policy),
]
PLAIN: list[tuple[str, ...]] = [
    ("XGROUP", "DESTROY", K.tickets("train"), GENERATORS),
    ("XGROUP", "DESTROY", K.rollouts("train"), LEARNER),
    ("XGROUP", "DELCONSUMER", K.rollouts("train"), LEARNER, "learner"),
    ("XGROUP", "SETID", K.rollouts("train"), LEARNER, "0"),
    ("XTRIM", K.rollouts("train"), "MAXLEN", "0"),
    ("XTRIM", K.tickets("train"), "MAXLEN", "0"),
    ("EXPIRE", K.policy, "1"),
    ("RENAME", K.journal, K.recipe),
    ("RESTORE", K.policy, "0", "x"),
    ("COPY", K.dead_letters, K.rollouts("train")),
    ("SELECT", "1"),
    ("MOVE", K.policy, "1"),
]
THE_LEARNER_S: list[tuple[str, ...]] = [
    ("SET", K.policy, "9"),
    ("INCR", K.policy),
    ("XGROUP", "DELCONSUMER", K.tickets("train"), GENERATORS, "one"),
    ("PUBLISH", K.policy, "9"),
    ("SET", K.fingerprint, "{}"),
    ("SET", K.recipe, "{}"),
    ("SET", K.finished, "finished"),
    ("HSET", K.ledger("train"), "issued", "0"),
    ("HINCRBY", K.ledger("train"), "trained", "1"),
    ("INCR", K.ledger("epoch")),
    ("HSET", K.unsettled("train"), "t", "0"),
    ("HDEL", K.unsettled("train"), "t"),
    ("RPUSH", K.journal, "x"),
    ("LTRIM", K.journal, "1", "0"),
    ("XADD", K.tickets("train"), "*", "a", "b"),
    ("XADD", K.tickets("eval"), "*", "a", "b"),
    ("XADD", K.dead_letters, "*", "a", "b"),
    ("XREADGROUP", "GROUP", LEARNER, "learner", "COUNT", "1", "STREAMS", K.rollouts("train"), ">"),
    ("HSET", K.weights, "0", "{}"),
    ("HDEL", K.weights, "0"),
    ("SET", K.weight_chunk("a" * 32, 0), "x"),
    ("UNLINK", K.weight_chunk("a" * 32, 0)),
    ("HSET", K.shipments, "a", "1"),
    script("SET", K.weight_chunk("a" * 32, 0), "x"),
    ("XACK", K.rollouts("train"), LEARNER, "0-1"),
    ("XDEL", K.rollouts("train"), "0-1"),
    ("DEL", K.policy),
    ("DEL", K.tickets("train")),
    ("UNLINK", K.ledger("train")),
    script("SET", K.policy, "9"),
    script("XADD", K.tickets("train"), "*", "a", "b"),
    script("HSET", K.ledger("train"), "issued", "0"),
    script("DEL", K.tickets("train")),
]
THE_GENERATOR_S: list[tuple[str, ...]] = [
    ("XADD", K.rollouts("train"), "*", "ticket_id", "t", "payload", "x"),
    ("XADD", K.rollouts("eval"), "*", "ticket_id", "t", "payload", "x"),
    ("XAUTOCLAIM", K.tickets("train"), GENERATORS, "learner", "0", "0"),
    ("XREADGROUP", "GROUP", GENERATORS, "learner", "COUNT", "1", "STREAMS", K.tickets("train"), ">"),
    ("HSET", K.generators, "ghost", "9e9"),
    ("SET", K.task_card, "{}"),
    ("INCR", K.late),
    script("XADD", K.rollouts("train"), "*", "ticket_id", "t", "payload", "x"),
    script("SET", K.task_card, "{}"),
]
THE_ADMIN_S: list[tuple[str, ...]] = [
    ("RPUSH", K.requeue, "t0000000000"),
    ("LSET", K.requeue, "0", "t0000000000"),
    ("DEL", K.requeue),
    ("XDEL", K.dead_letters, "0-1"),
    script("RPUSH", K.requeue, "t0000000000"),
]
FORBIDDEN: list[tuple[Role, tuple[str, ...]]] = [
    *((role, command) for role in ROLES for command in SERVER),
    *((role, command) for role in ROLES if role != "admin" for command in PLAIN),
    *((role, command) for role in ("generator", "monitor") for command in THE_LEARNER_S),
    *((role, command) for role in ("learner", "monitor") for command in THE_GENERATOR_S),
    *((role, command) for role in ROLES if role != "admin" for command in THE_ADMIN_S),
    *((role, ("LTRIM", K.requeue, "1", "0")) for role in ("generator", "monitor")),
    ("generator", ("LRANGE", K.requeue, "0", "0")),
    ("learner", ("XRANGE", K.audit, "-", "+")),  # the texts of completions are in it
    ("generator", ("XRANGE", K.audit, "-", "+")),
    ("learner", script("XRANGE", K.audit, "-", "+")),
    ("generator", ("XTRIM", K.audit, "MAXLEN", "0")),
    ("learner", ("DEL", K.audit)),
    ("monitor", ("XADD", K.audit, "*", "ticket_id", "t", "payload", "x")),
]


@pytest.fixture(scope="module")
def stage(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A run that is under way, which nothing below changes."""
    clients = {user: door.client(user) for user in (*ROLES, "root")}
    clients["root"].flushall()
    Play(clients["learner"], clients["generator"], clients["root"], tmp_path_factory.mktemp("policy"))
    return clients


@pytest.mark.parametrize(("role", "command"), FORBIDDEN, ids=lambda value: value if isinstance(value, str) else None)
def test_what_is_another_s_is_refused(
    stage: dict[str, redis_library.Redis], role: Role, command: tuple[str, ...]
) -> None:
    before = _state(stage["root"])
    with pytest.raises(redis_library.ResponseError) as caught:
        stage[role].execute_command(*command)
    # A server that has DEBUG and MODULE switched off says so before it looks at who asks: what it would say is asked.
    said = str(caught.value)
    if command[0] in ("DEBUG", "MODULE"):
        said = _str(stage["root"].execute_command("ACL", "DRYRUN", role, *command))
    assert any(words in said.lower() for words in ("no permissions", "the user executing the script can't")), said
    assert _state(stage["root"]) == before


def _state(root: redis_library.Redis) -> dict[Any, Any]:
    """Everything in the database."""
    names: Any = root.keys("*")
    return {name: root.dump(name) for name in names if name != K.tickets("train").encode()} | {
        "tickets": root.xrange(K.tickets("train"))
    }


def test_who_has_no_user_does_not_come_in(door: Door) -> None:
    with redis_library.Redis(port=door.server.port) as stranger, pytest.raises(redis_library.AuthenticationError):
        stranger.ping()
    liar = connect(BrokerSettings(password="x" * 43), door.server.url.replace("://", "://learner@"))
    with liar, pytest.raises(Refused, match="wrong user name or password"):
        require(liar)


def test_every_key_of_a_run_is_somebody_s() -> None:
    """A key that nobody may write in `broker/roles.py` has been forgotten there."""
    names = [name for name in vars(Keys) if isinstance(vars(Keys)[name], property) and name != "everything"]
    patterns = [getattr(K, name) for name in names] + [K.tickets("*"), K.rollouts("*"), K.unsettled("*"), K.ledger("*")]
    written = " ".join(rules("generator", RUN) + rules("learner", RUN))
    assert [pattern for pattern in patterns if f" ~{pattern} " not in f" {written} ".replace("(", "( ")] == []
    assert "run" in {field.name for field in fields(Keys)}
    assert replace(K, run="*").everything == "headrace:*:*"


# -- the files --------------------------------------------------------------------------------------------------------


def test_the_file_holds_no_password_and_passwords_are_their_owner_s(tmp_path: Path) -> None:
    path = acl.write(tmp_path / "secrets", environ={"HEADRACE_LEARNER_PASSWORD": "given by a keeper of secrets"})
    files = {p.name: p for p in path.parent.iterdir()}
    assert sorted(files) == ["admin.password", "generator.password", "monitor.password", "users.acl"]
    for file in files.values():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = path.read_text()
    assert "given by" not in text
    for role in ("admin", "generator", "monitor"):
        assert files[f"{role}.password"].read_text().strip() not in text
    assert text.splitlines()[0] == "user default reset off"


def test_passwords_stay_and_the_table_is_written_anew(tmp_path: Path) -> None:
    first = acl.write(tmp_path, "one", {}).read_text()
    second = acl.write(tmp_path, "two", {}).read_text()
    assert first.replace("headrace:one:", "headrace:two:") == second


@pytest.mark.parametrize("run", ["", "a b", "*a", "a*", "a ~*", "../x", "a\nuser b on nopass +@all ~*"])
def test_a_name_that_would_say_more_than_a_name(tmp_path: Path, run: str) -> None:
    with pytest.raises(Refused, match="is no name of a run"):
        acl.write(tmp_path, run, {})


def test_users_of_one_run_stay_its_own_when_a_password_is_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: tuple[list[str], ...] = (
        ["--run", "alpha"],
        ["--rotate", "generator"],
        ["--switch", "generator"],
        ["--forget", "generator"],
        [],
    )
    for words in changes:
        monkeypatch.setattr("sys.argv", ["acl", "--out", str(tmp_path), *words])
        acl.main()
        assert "~headrace:alpha:" in (tmp_path / acl.FILE).read_text()
        assert "~headrace:*:" not in (tmp_path / acl.FILE).read_text()
    monkeypatch.setattr("sys.argv", ["acl", "--out", str(tmp_path), "--run", "*"])
    acl.main()
    assert "~headrace:alpha:" not in (tmp_path / acl.FILE).read_text()


def test_a_password_that_can_be_guessed(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="HEADRACE_ADMIN_PASSWORD is shorter than 16") as caught:
        acl.write(tmp_path, environ={"HEADRACE_ADMIN_PASSWORD": "hunter2"})
    assert "hunter2" not in str(caught.value)
