"""`python -m monitoring.explain RECIPE [GROUP]`: the whole life of one group; without GROUP a table of the latest.

Invariant: looking changes nothing, and where there is nothing to show one line says why. Refuses to know what a good
group is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis
from rich import box
from rich.console import Console
from rich.table import Table

from broker.cli import guarded
from broker.connection import address
from broker.errors import Refused
from broker.keys import Keys
from broker.loading import load
from monitoring.letters import printable
from monitoring.life import STYLES, clock, shown, visible
from monitoring.pick import WORDS, number_of, pick
from monitoring.reach import reach
from monitoring.recipe import ViewRecipe
from monitoring.trail import Life, Trail

LATEST = 20  # groups in the table
USAGE = f"monitoring.explain RECIPE [TICKET_ID | the beginning of one | its number | {' | '.join(WORDS)}]"


def latest(lives: Sequence[Life]) -> Table:
    """The newest ones, the newest last."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column("group", no_wrap=True)
    for name in ("problem", "reward", "versions", "verdict", "step"):
        table.add_column(name, justify="left" if name in ("versions", "verdict") else "right", no_wrap=True)
    table.add_column("told at", style="dim", no_wrap=True)
    for life in lives[-LATEST:]:
        use, versions = life.use, life.versions
        table.add_row(
            visible(life.ticket_id),
            "" if life.sampling is None else str(life.sampling.problem),
            "–" if life.reward is None else f"{life.reward:.3f}",
            "–".join(str(v) for v in (*versions[:1], *versions[1:][-1:])),
            f"[{STYLES.get(life.verdict, 'dim')}]{life.verdict}[/]",
            "" if use is None else str(use.step),
            clock(life.told_at)[11:19],
        )
    return table


def absence(client: redis.Redis, keys: Keys, wanted: str) -> Refused:
    """Why the log has no such group."""
    name, books, raw = printable(wanted), keys.ledger("train"), wanted
    said: Any = client.hget(books, "issued")
    issued = int(said or 0)
    if not client.exists(books, keys.fingerprint, keys.audit):
        return Refused(f"Redis at {address(client)} knows no run {keys.run}", "see run.name and broker.url")
    if not client.exists(keys.audit):
        return Refused(f"the run {keys.run} has no audit log", "groups are told of from the first one on, unless "
                       "broker.audit_entries = 0")  # fmt: skip
    number = int(raw[:19]) if raw.isascii() and raw.isdecimal() else number_of(raw)
    waiting: Any = client.hgetall(keys.unsettled("train"))
    open_tickets = {ticket.decode("utf-8", "replace") for ticket in waiting}
    if any(ticket.startswith(raw) or (number is not None and number_of(ticket) == number) for ticket in open_tickets):
        return Refused(
            f"nobody has told of the group of ticket {name}, which is not settled yet",
            "`make ledger` shows where it is",
        )
    if number is not None and number >= issued:
        return Refused(f"the run {keys.run} has issued no ticket {name}, so far {issued} of them")
    if number is not None:
        kept = "it holds the newest broker.audit_entries notes, two a group"
        return Refused(f"the group of ticket {name} is not in the audit log any more", kept)
    if raw.startswith("e"):
        return Refused(f"no group {name}", "evaluations are not in the audit log, only groups to train on")
    return Refused(f"no group {name} in the audit log", "`make explain` without GROUP lists the latest")


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.explain", usage=USAGE, description="tell the life of a group")
    parser.add_argument("recipe", type=Path)
    options, rest = parser.parse_known_args()
    wanted = rest.pop(0) if rest and not rest[0].startswith("--") else ""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # π/μ on a terminal that knows no Greek
    console = Console(highlight=False)
    with reach(options.recipe, load(ViewRecipe, options.recipe, rest)) as (client, keys):
        trail = Trail.read(client, keys)
        life = pick(trail.lives, wanted) if wanted else None
        if life is None and (wanted or not trail.lives):
            raise absence(client, keys, wanted or "latest")
    console.print(latest(trail.lives) if life is None else shown(life))
    if life is None:
        print(f"{len(trail.lives)} groups in the log; `make explain GROUP=…` tells the life of one")
    if trail.unreadable:
        print(f"{trail.unreadable} notes that cannot be read are left out")


if __name__ == "__main__":
    main()
