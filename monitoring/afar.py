"""A run of any machine, as a Prometheus sees it, put together into what a view can draw.

Invariant: drawing never waits; a Prometheus that is away leaves the last picture and the time since. A run goes on
while one of its processes has answered of late. Refuses to know screens.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import suppress

from broker.errors import Refused
from monitoring.hearsay import Questions, Reply
from monitoring.progress import History, Record
from monitoring.prometheus_api import Prometheus
from monitoring.rounds import Rounds
from monitoring.sight import Sight

EVERY_SECONDS = 2.0
BLIND_SECONDS = 8.0  # without an answer of Prometheus; shorter is nothing to speak of


def chosen(prometheus: Prometheus, run: str | None) -> str:
    """The run to watch: the one that is named, that goes on, or that is known. Raises `Refused` where that is none or
    several."""
    known = prometheus.label_values("run", "headrace_learner_step")
    if run is not None:
        if run not in known:
            raise Refused(f"Prometheus knows no run {run!r}", f"it knows {', '.join(known) or 'none'}")
        return run
    alive = prometheus.now('group by (run) ({__name__=~"headrace_(learner|exporter)_waiting"})')
    going = sorted(one.labels.get("run", "") for one in alive)
    found = going or known
    if not found:
        raise Refused(f"the Prometheus on {prometheus.url} knows no run", "its targets are those of `make monitoring`")
    if len(found) > 1:
        raise Refused(f"Prometheus knows several runs: {', '.join(found)}", f"name one: RUN={found[-1]}")
    return found[0]


class Afar(Rounds):
    """Looks at one run whenever it is asked to."""

    title, pause = "afar", EVERY_SECONDS

    def __init__(self, questions: Questions, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._questions, self._clock = questions, clock
        self.progress = History()
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._last: Reply | None = None
        self.start()

    def _round(self) -> None:
        with suppress(Refused):  # whoever looks sees for how long, and we ask again
            self._replies.put(self._questions.ask())

    @property
    def undecided(self) -> bool:
        """Prometheus has not answered yet."""
        return self._last is None and self._replies.empty()

    def look(self) -> Sight | None:
        """Everything that is known now; None before anything is."""
        new: list[Record] = []
        while not self._replies.empty():
            self._last = self._replies.get()
            new += self._last.records
        self.progress.add(new)
        return None if self._last is None else self._sight(self._last, new)

    def _sight(self, said: Reply, new: list[Record]) -> Sight:
        going = said.heard and not said.finished
        steps, bound = (said.settings.get(name) for name in ("steps", "max_staleness"))
        silent = self._clock() - said.received
        return Sight(
            name=self._questions.run,
            about=self._questions.prometheus.url,
            steps=None if steps is None else round(steps),
            max_staleness=None if bound is None else round(bound),
            progress=self.progress,
            new=new,
            now=said.now,
            began=self._began(),
            status=self._status(said, going),
            status_since=None,
            learner=said.learner if going else None,
            generators=said.generators if going else {},
            tokens_per_second=said.rates[0],
            groups_per_second=said.rates[1],
            going=going,
            alarms=said.alarms,
            blind=silent if silent > BLIND_SECONDS else None,
        )

    def close(self) -> None:
        """As of a `Watch`."""
        self.stop()

    def _began(self) -> float | None:
        """Known if the first step was seen."""
        first = next(iter(self.progress.steps), None)
        return first.time - first.seconds if first and first.covers == first.step else None

    def _status(self, said: Reply, going: bool) -> str:
        if not going:
            return "finished" if said.finished else "not running"
        step = self.progress.steps[-1] if self.progress.steps else None
        if step is None:
            return "starting"
        return "finishing" if step.steps and step.step >= step.steps else "training"
