"""Which role may do what in Redis: the table from which the server's users are made.

Invariant: what no line here allows is refused by the server; nobody but the learner moves the pointer or the books, and
nobody but a generator adds a group. Refuses to know passwords, files and servers.

Commands that a script calls are checked as if they were sent alone, so the right to run a script on a key (`evalsha`)
gives no right to change that key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from broker.keys import Keys

Role = Literal["generator", "learner", "monitor", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
ANY = "*"  # in place of a run's name: every run

CONNECTION = ("ping", "info", "hello", "client|setname", "multi", "exec", "discard")
SCRIPTS = ("eval", "evalsha")
LOOKING_AT_A_STREAM = ("xlen", "xrange", "xpending", "xinfo|stream", "xinfo|groups")
STATE = (
    *("get", "set", "incr", "incrby", "watch"),
    *("hget", "hset", "hmget", "hgetall", "hlen", "hexists", "hincrby", "hdel"),
    *("rpush", "lrange", "llen", "ltrim"),
)
READING = (
    *("get", "strlen", "exists", "type", "ttl", "memory|usage", "hget", "hmget", "hgetall", "hlen", "llen", "lrange"),
    *(*LOOKING_AT_A_STREAM, "xrevrange", "xinfo|consumers"),
)


@dataclass(frozen=True)
class Grant:
    """`commands` on `keys`; none of them without keys. `read_only` keys can be read whatever the command."""

    commands: tuple[str, ...]
    keys: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    read_only: bool = False

    def rules(self) -> list[str]:
        """As ACL rules."""
        sign = "%R~" if self.read_only else "~"
        channels = [f"&{channel}" for channel in self.channels]
        return [*(f"{sign}{key}" for key in self.keys), *channels, *(_command(c) for c in self.commands)]


def _command(name: str) -> str:
    return name if name.startswith("-") else f"+{name}"


def generator(keys: Keys) -> list[Grant]:
    """Claims tickets, publishes groups, leases versions, says that it lives; changes nothing else, reads no note."""
    tickets, rollouts = keys.tickets(ANY), keys.rollouts(ANY)
    return [
        Grant((*CONNECTION, "script|load", "subscribe", "unsubscribe"), channels=(keys.policy,)),
        Grant(SCRIPTS, (tickets, rollouts, keys.late, keys.policy_leases)),
        Grant(("xgroup|create", "xreadgroup", "xpending", "xrange", "xclaim", "xack", "xdel"), (tickets,)),
        Grant(("xgroup|create", "xadd"), (rollouts,)),
        Grant(("incr",), (keys.late,)),
        Grant(("xadd",), (keys.audit,)),
        Grant(("hget", "hset", "hdel"), (keys.policy_leases, keys.generators)),
        Grant(("get", "set", "exists"), (keys.task_card,)),
        Grant(("get", "exists"), (keys.policy, keys.fingerprint, keys.recipe, keys.finished), read_only=True),
        Grant(("hget", "mget"), (keys.weights, keys.weight_chunk(ANY, ANY)), read_only=True),
    ]


def learner(keys: Keys) -> list[Grant]:
    """Issues tickets, settles groups, keeps the books and the pointer; may begin its own run anew, adds no group.

    It adds to the audit log, too, and cannot read it: text stops at the stream.
    """
    tickets, rollouts = keys.tickets(ANY), keys.rollouts(ANY)
    kept = (
        keys.ledger(ANY),
        keys.unsettled(ANY),
        *keys.since_checkpoint(),
        keys.writer,
        keys.policy,
        keys.policy_leases,
    )
    announced = (keys.recipe, keys.fingerprint, keys.finished)
    shipped = (keys.writer, keys.weights, keys.weight_chunk(ANY, ANY), keys.shipments)
    stream = (*LOOKING_AT_A_STREAM, "xgroup|create", "xack", "xdel")
    return [
        Grant((*CONNECTION, "script|load", "publish", "unwatch"), channels=(keys.policy,)),
        Grant(SCRIPTS, (tickets, rollouts, *kept)),
        Grant(("del", "unlink", "exists"), (tickets, rollouts, *kept, *announced)),
        Grant((*stream, "xadd", "xinfo|consumers", "xgroup|delconsumer"), (tickets,)),
        Grant((*stream, "xreadgroup"), (rollouts,)),
        Grant(SCRIPTS, (keys.dead_letters, keys.dead_letters_dropped)),
        Grant(("xadd", "xlen", "xtrim"), (keys.dead_letters,)),
        Grant(("incrby",), (keys.dead_letters_dropped,)),
        Grant(("xadd",), (keys.audit,)),
        Grant(("lrange", "ltrim"), (keys.requeue,)),
        Grant(STATE, (*kept, *announced)),
        Grant((*SCRIPTS, "hget", "hset", "hkeys", "hgetall", "hdel", "get", "set", "exists", "unlink"), shipped),
        Grant(("get", "hgetall", "hlen", "exists"), (keys.generators, keys.task_card, keys.late), read_only=True),
    ]


def monitor(keys: Keys) -> list[Grant]:
    """Reads everything of a run, also by scripts."""
    everything = (keys.everything,)
    return [
        Grant((*CONNECTION, "script|load")),
        Grant((*SCRIPTS, "eval_ro", "evalsha_ro"), everything),
        Grant(READING, everything, read_only=True),
    ]


def admin(keys: Keys) -> list[Grant]:
    """Mends a run by hand: any ordinary command on its keys, nothing that touches the server or other runs."""
    kinds = ("@keyspace", "@stream", "@hash", "@list", "@string", "@transaction", "@connection")
    never = ("-@admin", "-@dangerous", "-scan", "-randomkey")
    return [Grant((*kinds, *never, "info"), (keys.everything,), (keys.everything,))]


_TABLE: dict[Role, Callable[[Keys], list[Grant]]] = {
    "generator": generator,
    "learner": learner,
    "monitor": monitor,
    "admin": admin,
}


def rules(role: Role, run: str = ANY) -> list[str]:
    """The ACL rules of a role in one run, or in all: as ACL SETUSER takes them, without a password."""
    first, *others = _TABLE[role](Keys(run))
    selectors = [f"({' '.join(grant.rules())})" for grant in others]
    return ["on", "sanitize-payload", "resetkeys", "resetchannels", "-@all", *first.rules(), *selectors]
