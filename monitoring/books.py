"""`python -m monitoring.books RECIPE`: the ledger of a run, and where every ticket without a final verdict is.

Invariant: looking changes nothing; status 1 says that the books do not balance. Refuses to know why a
verdict was given.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from broker.cli import guarded
from broker.connection import connect, require
from broker.keys import Keys
from broker.ledger import VERDICTS, Balance, Ledger
from broker.loading import load
from broker.schema import KINDS
from broker.settings import redis_url
from monitoring.recipe import ViewRecipe, where

SHOWN = 10  # ids of tickets that are astray


def lines(kind: str, balance: Balance, now: float) -> list[str]:
    """The books of one kind, for people."""
    counted = [f"{verdict} {n}" for verdict in VERDICTS if (n := balance.verdicts.get(verdict, 0))]
    sums = " + ".join([*counted, f"outstanding {len(balance.unsettled)}"])
    found = [f"{kind:<6}issued {balance.issued} = {sums}"]
    if balance.unsettled or balance.located:
        age = "" if balance.oldest is None else f"; the oldest was issued {now - balance.oldest:.0f} s ago"
        found.append(
            f"      outstanding: {len(balance.waiting)} wait for a generator, {len(balance.claimed)} are with one, "
            f"{len(balance.published)} with the learner{age}"
        )
    if not balance.balanced:
        astray = sorted(balance.astray)
        named = f": {', '.join(astray[:SHOWN])}{' …' if len(astray) > SHOWN else ''}" if astray else ""
        found.append(f"      DOES NOT BALANCE, {len(astray)} tickets astray{named}")
    return found


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.books", description="show a run's ledger")
    parser.add_argument("recipe", type=Path)
    options, flags = parser.parse_known_args()
    name, broker = where(options.recipe, load(ViewRecipe, options.recipe, flags))
    with connect(broker, redis_url(broker)) as client:
        require(client)
        balances = {kind: Ledger(client, Keys(name), kind).balance() for kind in reversed(KINDS)}
    for kind, balance in balances.items():
        print("\n".join(lines(kind, balance, time.time())))
    if not all(balance.balanced for balance in balances.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
