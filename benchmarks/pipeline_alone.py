"""Each side of a pipeline alone, one after the other, in a run as a user starts it.

    python -m benchmarks.pipeline_alone RECIPE --learner.pipeline_depth STEPS-1 …

Invariant: while generators answer the tickets of the whole run the learner's process stands still, and when it trains
on what they have answered they are gone. Refuses to know figures.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import redis

from broker.cli import guarded
from broker.errors import Refused
from broker.keys import Keys
from broker.ledger import Ledger
from broker.settings import redis_url
from deploy.launcher import POLL_SECONDS, Launcher, launch
from deploy.recipe import read


class Alone(Launcher):
    """A run whose every ticket is issued at once."""

    def _watch(self) -> None:
        assert self.learner is not None
        keys, groups = Keys(self.recipe.run.name), self.recipe.run.steps * self.recipe.learner.groups_per_step
        with redis.Redis.from_url(redis_url(self.recipe.broker), password=self.recipe.broker.secret) as client:
            ledger = Ledger(client, keys, "train")
            self._until(lambda: ledger.count("issued") >= groups)
            assert self.learner.process is not None
            os.kill(self.learner.process.pid, signal.SIGSTOP)
            self._until(lambda: int(client.xlen(keys.rollouts("train"))) >= groups)
        self.generators.stop()
        os.kill(self.learner.process.pid, signal.SIGCONT)
        self._until(lambda: self.learner is not None and self.learner.status == 0)

    def _until(self, done: Callable[[], bool]) -> None:
        """Nobody is started again here: a side that dies has not been measured. Raises `Refused`."""
        while not done():
            for child in (self.learner, *self.generators.serving.values()):
                if child is not None and child.status is not None:
                    raise Refused(f"{child.name} has ended: {child.last_words()}", f"see {child.log}")
            time.sleep(POLL_SECONDS)


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    options, flags = parser.parse_known_args()
    launch(read(options.recipe, flags), Alone)


if __name__ == "__main__":
    main()
