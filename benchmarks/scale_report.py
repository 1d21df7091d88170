"""What `benchmarks.scale` found, as tables in Markdown.

Invariant: every run and every round is in a table. Refuses to know how they came about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks import scale_floor

Row = dict[str, Any]
Found = dict[str, Any]
DERIVATION = (scale_floor.__doc__ or "").partition("\n\n")[2].partition("\n\nInvariant")[0]
COST = """CPU time between the arrival of a group and the commit of its step: Intake, Inbox (decoding of a group of
8 × 64 tokens included), StalenessBuffer, Dispatch, ledger; 32 groups a step, a checkpoint every 10 steps. Generators of
one slot; depth and bound grow with them as sizing has it. *trains*: groups arrive while the learner trains, as where
sides are balanced, and are claimed together; *waits*: training takes no time, so each group is waited for and wakes the
learner alone. The server's time is that of its main thread meanwhile. Medians of {rounds} rounds of {steps} steps, all
numbers of generators in each round (smallest and largest), µs a group."""
FLEETS = """One slot each, as many groups in a step, log-normal times, depth 2, bound 16. *groups*: trained, in the time
of a step."""
CONNECTIONS = """Each generator is a `TicketStream` on two TCP connections of its own, in one of two processes full of
threads, beside server and learner on the same cores. *held* 0: a group is published as soon as its ticket is claimed,
and what is measured is the machine: clients, learner and server together are busy all the time. Else each ticket is
held for that long on average, anything from nothing to twice that as likely, and its lease renewed once. A claim's
time runs from before the transaction that issues its ticket to the return of `claim`; a ticket in play for each
generator."""


def page(document: Found) -> str:
    """Of the parts that were measured."""
    parts = ["# The flow of tickets at scale", f"Written by `make bench-scale`; {document['machine']}."]
    if "idle" in document:
        parts.append(f"## Floors\n\n{DERIVATION}")
        parts += [section for times in ("log-normal", "GSM8K") for section in _idle(times, document["idle"])]
    if "pairs" in document:
        said = "`ready` at depth 2 and `strict` at depth 16, both with bound 16"
        parts.append(f"## {said}\n\nOne seed a row.\n\n{_pairs(document['pairs'])}")
    if "fleets" in document:
        parts.append(f"## Ever more generators, in virtual time\n\n{FLEETS}\n\n{_fleets(document['fleets'])}")
    if "cost" in document:
        parts.append(f"## What a group costs\n\n{_cost_text(document['cost'])}\n\n{_cost(document['cost'])}")
    if "connections" in document:
        parts.append(f"## Connections\n\n{CONNECTIONS}\n\n{_connections(document['connections'])}")
    return "\n\n".join(parts) + "\n"


def _idle(times: str, rows: Sequence[Row]) -> list[str]:
    of = [row for row in rows if row["job"]["times"] == times]
    job = of[0]["job"]
    shape = f"{job['generators']} generators of {job['slots']} slots, {job['generators'] * job['slots']} groups a step"
    said = (
        f"{job['steps']} steps a run, {shape}: together they sample as fast as the learner trains. `strict` has its"
        " bound as its depth. Idle: of the learner's time from the first ticket to the last step, %; staleness: mean of"
        " the groups trained on; none went stale or was lost in any run."
    )
    tables: list[tuple[str, Callable[[Row], str]]] = [
        ("idle", lambda row: f"{100 * row['idle']:.1f}"),
        ("idle, points above the floor", lambda row: f"{100 * (row['idle'] - row['promised']):.1f}"),
        ("idle, points above `told`", lambda row: f"{100 * (row['idle'] - row['told']):.1f}"),
        ("idle, points above `any`", lambda row: f"{100 * (row['idle'] - row['any']):.1f}"),
        ("mean staleness", lambda row: f"{row['staleness']:.2f}"),
        ("generators' slots idle", lambda row: f"{100 * max(0.0, row['slots_idle']):.1f}"),
    ]
    return [f"## {times} times\n\n{said}", *(f"{_matrix(of, name, cell)}" for name, cell in tables)]


def _matrix(rows: Sequence[Row], name: str, cell: Callable[[Row], str]) -> str:
    bounds = sorted({row["job"]["bound"] for row in rows})
    cells = {(_side(row), row["job"]["bound"]): cell(row) for row in rows}
    sides = dict.fromkeys(_side(row) for row in rows)
    head = [f"**{name}**, bound", *map(str, bounds)]
    return _table(head, ([side, *(cells.get((side, bound), "") for bound in bounds)] for side in sides))


def _side(row: Row) -> str:
    return "strict" if row["job"]["order"] == "strict" else f"ready, depth {row['job']['depth']}"


def _pairs(rows: Sequence[Row]) -> str:
    head = ["seed", "ready: idle, %", "its floor", "staleness", "strict: idle, %", "its floor", "staleness"]
    return _table(
        head,
        (
            [
                str(ready["job"]["seed"]),
                *(
                    f"{value:.2f}"
                    for row in (ready, strict)
                    for value in (100 * row["idle"], 100 * row["promised"], row["staleness"])
                ),
            ]
            for ready, strict in by_seed(rows)
        ),
    )


def by_seed(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Runs of `ready` and `strict` with the same group times."""
    ready, strict = ([row for row in rows if row["job"]["order"] == order] for order in ("ready", "strict"))
    return list(zip(ready, strict, strict=True))


def _fleets(rows: Sequence[Row]) -> str:
    head = ["generators", "steps", "groups", "learner idle, %", "its floor", "slots idle, %", "staleness: mean, most"]
    return _table(
        head,
        (
            [
                f"{row['job']['generators']:,}",
                str(row["job"]["steps"]),
                f"{row['groups_a_step']:.1f}",
                f"{100 * row['idle']:.1f}",
                f"{100 * row['promised']:.1f}",
                f"{100 * row['slots_idle']:.1f}",
                f"{row['staleness']:.2f}, {row['stalest']}",
            ]
            for row in rows
        ),
    )


def _cost_text(rows: Sequence[Row]) -> str:
    return COST.format(rounds=len({row["round"] for row in rows}), steps=rows[0]["steps"])


def _cost(rows: Sequence[Row]) -> str:
    table = []
    for wait, generators in dict.fromkeys((row["wait"], row["generators"]) for row in rows):
        of = [row for row in rows if (row["wait"], row["generators"]) == (wait, generators)]
        sums = [row["ours"] + row["servers"] for row in of]
        table.append(
            [
                wait,
                f"{generators:,}",
                f"{of[0]['in_play']:,}",
                *(f"{median(row[whose] for row in of):.0f}" for whose in ("ours", "servers")),
                f"{median(sums):.0f} ({min(sums):.0f} – {max(sums):.0f})",
            ]
        )
    return _table(["learner", "generators", "tickets in play", "ours", "the server's", "together"], table)


def _connections(rows: Sequence[Row]) -> str:
    *levels, most = rows
    head = ["generators", "connections", "held, s", "groups/s", "claim p50, ms", "p99, ms", "server's CPU, %"]
    table = _table(
        head,
        (
            [
                f"{row['generators']:,}",
                f"{row['connections']:,}",
                f"{row['held']:g}",
                f"{row['rate']:,.0f}",
                f"{1e3 * row['p50']:.1f}",
                f"{1e3 * row['p99']:.1f}",
                f"{100 * row['servers']:.0f}",
            ]
            for row in levels
        ),
    )
    return f"{table}\n\n{_limit(most)}"


def _limit(most: Row) -> str:
    ended = f"the next connection ended with: {most['said']}" if most["said"] else "and no more were tried"
    return f"Connected at once, with two connections each: {most['generators']:,} generators; {ended}."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
