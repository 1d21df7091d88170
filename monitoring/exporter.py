"""`python -m monitoring.exporter RECIPE`: the books of a run as Prometheus metrics, and a word when they are wrong.

Invariant: it changes nothing in Redis, and outlives a Redis that is away: that is a figure (`headrace_redis_up` 0), and
so is an imbalance, which is also one line in the log when it begins and one when it ends. Refuses to know what the
figures are called (metrics) and where an imbalance came from.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis
import structlog

from broker.cli import guarded
from broker.connection import address, connect, require
from broker.errors import Refused
from broker.keys import Keys
from broker.ledger import Balance
from broker.loading import load
from broker.log import setup
from broker.patience import passing
from broker.schema import Kind
from broker.settings import redis_url
from monitoring.books import SHOWN
from monitoring.metrics import ExporterMetrics
from monitoring.reading import Reading
from monitoring.recipe import ViewRecipe, where
from monitoring.signals import Signals
from monitoring.watchdog import watched

LARGEST_SHARE = 0.05  # of Redis' time: a second for a gigabyte of groups, to which it answers nobody else


@dataclass
class Exporter:
    """Of one run."""

    client: redis.Redis
    keys: Keys
    metrics: ExporterMetrics
    clock: Callable[[], float] = time.time
    log: structlog.stdlib.BoundLogger = field(default_factory=lambda: structlog.get_logger("exporter"))
    _wrong: set[Kind] = field(default_factory=set)  # the kinds whose books did not balance when last looked at

    def look(self) -> None:
        """Read Redis once. Raises what waiting cannot mend, such as a right that was taken away."""
        try:
            with self.metrics.phase("read"):
                reading = Reading.take(self.client, self.keys, self.clock())
        except redis.RedisError as error:
            if not passing(error):
                raise
            self._say_away(error)
            self.metrics.observe(None)
            return
        self.metrics.observe(reading)
        self.metrics.ready_when(lambda: True)
        for kind, balance in reading.balances.items():
            self._judge(kind, balance)

    def _say_away(self, error: redis.RedisError) -> None:
        if self.metrics.wait.reason != "Redis":
            self.log.warning("redis does not answer", where=address(self.client), error=str(error)[:200])

    def _judge(self, kind: Kind, balance: Balance) -> None:
        """One line when books cease to balance, one when they balance again."""
        if balance.balanced == (kind not in self._wrong):
            return
        if balance.balanced:
            self._wrong.discard(kind)
            self.log.info("the books balance again", kind=kind)
            return
        self._wrong.add(kind)
        self.log.error(
            "the books do not balance",
            kind=kind,
            issued=balance.issued,
            settled=sum(balance.verdicts.values()),
            outstanding=len(balance.unsettled),
            astray=len(balance.astray),
            tickets=" ".join(sorted(balance.astray)[:SHOWN]),
        )


def admitted(client: redis.Redis) -> None:
    """Raises `Refused` where this server is none for us, whenever it answers; one that is away may yet come."""
    try:
        client.ping()
    except redis.RedisError as error:
        if passing(error):
            return
    require(client)


def export(exporter: Exporter, seconds: float, signals: Signals) -> None:
    """Look every so many seconds, until told to stop; less often where a look is long, for Redis does nothing else."""
    while True:
        began = time.monotonic()
        exporter.look()
        took = time.monotonic() - began  # also of a look that came to nothing: Redis may be at it still
        if signals.wait(max(seconds, took / LARGEST_SHARE)):
            return


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.exporter", description="the books of a run as Prometheus metrics")
    parser.add_argument("recipe", type=Path)
    options, flags = parser.parse_known_args()
    setup("exporter")
    recipe = load(ViewRecipe, options.recipe, flags)
    settings = recipe.monitoring
    if settings.exporter_port == 0:
        raise Refused("monitoring.exporter_port is 0: there is nothing to export to", "give it a port, such as 9401")
    name, broker = where(options.recipe, recipe)
    stall = settings.stall_seconds and max(settings.stall_seconds, 3 * settings.exporter_seconds)
    metrics = ExporterMetrics(stall_seconds=stall)
    with Signals() as signals, connect(broker, redis_url(broker)) as client:
        admitted(client)
        with watched(metrics, settings, settings.exporter_port):
            export(Exporter(client, Keys(name), metrics), settings.exporter_seconds, signals)


if __name__ == "__main__":
    main()
