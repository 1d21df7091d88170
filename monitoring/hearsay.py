"""What a Prometheus knows of a run, asked round by round: its processes as they are, its steps since the last round.

Invariant: times are of Prometheus' own clock, so that a clock of ours that is wrong shows nowhere. Refuses to know
views.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from broker.errors import Refused
from monitoring.alarms import Alarms, alarms_of
from monitoring.endpoints import Answer
from monitoring.points import NAMES, PREFIX, Point, Tally, points_of
from monitoring.progress import History, Record
from monitoring.prometheus_api import Prometheus, Series

FINEST_SECONDS, MOST_POINTS = 2.0, 1000  # of the past
DAYS, GRID_SECONDS = 30, 300  # how far back a run is looked for, and how closely
GONE_SECONDS = 120.0  # without an answer of any process; some scrape once a minute
RATES = ("tokens_total", "groups_total")
PROCESS = (
    *("waiting", "waiting_since_seconds", "last_progress_seconds", "slots", "in_flight_groups", "policy_version"),
    *("groups_total", "process_start_time_seconds"),
)


@dataclass(frozen=True)
class Reply:
    """What Prometheus said in one round; `now` is by its own clock, `received` by ours."""

    now: float
    received: float
    records: Sequence[Record]
    learner: Answer | None
    generators: Mapping[str, Answer | None]
    rates: Sequence[float | None]  # tokens and groups a second
    finished: bool
    heard: bool  # one of its processes has answered of late
    settings: Mapping[str, float]
    alarms: Alarms


@dataclass
class Processes:
    """The last answer of each process, by its address; one that is no longer a target is forgotten."""

    answers: dict[str, Answer] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)

    def take(self, now: float, series: Sequence[Series], up: Mapping[str, float], scraped: Mapping[str, float]) -> None:
        """What is known of them now: figures, whether each answered, and when."""
        figures: dict[str, list[Series]] = {}
        for one in series:
            figures.setdefault(one.labels.get("instance", ""), []).append(one)
        for instance, said in figures.items():
            if up.get(instance, 1.0):
                self.roles[instance] = said[0].labels["__name__"].split("_")[1]
                self.answers[instance] = _answer(said, now, scraped.get(instance, now))
        for instance in [known for known in self.answers if up and known not in up]:
            del self.answers[instance], self.roles[instance]

    def of(self, role: str) -> dict[str, Answer]:
        """Those of a role."""
        return {i: answer for i, answer in sorted(self.answers.items()) if self.roles[i] == role}


def _answer(series: Sequence[Series], now: float, scraped: float) -> Answer:
    figures: dict[str, float] = {}
    reasons = ["none"]
    for one in series:
        name = one.labels["__name__"]
        figures[name] = figures.get(name, 0.0) + one.values[0]
        if "reason" in one.labels and one.values[0]:
            reasons.append(one.labels["reason"])
    role = series[0].labels["__name__"].split("_")[1]
    reason = "Redis" if "Redis" in reasons else reasons[-1]
    waited, idle = (figures.get(f"headrace_{role}_{name}_seconds", 0.0) for name in ("waiting_since", "last_progress"))
    return Answer(now, reason, "", None if reason == "none" else scraped - waited, scraped - idle, figures)


class Questions:
    """About one run; `ask` is one round."""

    def __init__(
        self,
        prometheus: Prometheus,
        run: str,
        *,
        gone_seconds: float = GONE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prometheus, self.run, self._gone, self._clock = prometheus, run, gone_seconds, clock
        self._of = f"run={json.dumps(run)}"
        self._tally, self._processes = Tally(), Processes()
        self._until: float | None = None
        self._settings: dict[str, float] = {}  # a learner that is away has none, and had them

    def ask(self) -> Reply:
        """What is new and what is. Raises `Refused` if no Prometheus answers."""
        now = self.prometheus.now("time()")[0].values[0]
        records = self._past(now) if self._until is None else self._since(self._until, now)
        self._until = now
        self._ask_processes(now)
        self._settings |= {s.labels["name"]: s.values[0] for s in self._now("headrace_learner_setting")}
        learners = list(self._processes.of("learner").values())
        return Reply(
            now=now,
            received=self._clock(),
            records=records,
            learner=max(learners, key=lambda answer: answer.at, default=None),
            generators=self._processes.of("generator"),
            rates=[self._rate(name) for name in RATES],
            finished=self._finished(),
            heard=bool(self.prometheus.now(f"max_over_time(up{{{self._of}}}[{self._gone:g}s]) == 1")),
            settings=dict(self._settings),
            alarms=self._alarms(),
        )

    def _alarms(self) -> Alarms:
        """Not every server that answers queries has rules."""
        try:
            return alarms_of(self.prometheus, self.run)
        except Refused as error:
            return Alarms(unknown=error.cause)

    def _now(self, name: str) -> list[Series]:
        return self.prometheus.now(f"{name}{{{self._of}}}")

    def _ask_processes(self, now: float) -> None:
        names = f"headrace_(learner|generator)_({'|'.join(PROCESS)})"
        series = self.prometheus.now(f'{{__name__=~"{names}",{self._of}}}')
        up = {s.labels.get("instance", ""): s.values[0] for s in self._now("up")}
        scraped = self.prometheus.now(f"timestamp(up{{{self._of}}})")
        self._processes.take(now, series, up, {s.labels.get("instance", ""): s.values[0] for s in scraped})

    def _rate(self, name: str) -> float | None:
        """Of all generators; where scrapes are rare a minute holds too few of them."""
        counter = f"headrace_generator_{name}{{{self._of}}}"
        found = self.prometheus.now(f"sum(rate({counter}[1m]) or rate({counter}[5m]))")
        return found[0].values[0] if found else None

    def _finished(self) -> bool:
        """The exporter says so, or said so last where it has gone."""
        said = self._now("headrace_run_finished")
        if not said and not self._now("headrace_learner_step"):  # a learner that is up may be a later one
            said = self.prometheus.now(f"last_over_time(headrace_run_finished{{{self._of}}}[{DAYS}d])")
        return bool(said) and all(one.values[0] == 1 for one in said)

    def _past(self, now: float) -> list[Record]:
        """All there is of the run, as closely as the number of points allows: of the present run under this name."""
        begin = self._first_heard(now)
        while True:
            self._tally, history = Tally(), History()
            history.add(self._since(begin, now))
            start = history.steps[0].time - history.steps[0].seconds if history.steps else begin
            closer, span = max(begin, start - FINEST_SECONDS), now - begin
            if span <= MOST_POINTS * FINEST_SECONDS or now - closer > span / 2:
                return [*history.steps, *history.evaluations]
            begin = closer - span / MOST_POINTS

    def _first_heard(self, now: float) -> float:
        stamps = f"timestamp(headrace_learner_step{{{self._of}}})[{DAYS}d:{GRID_SECONDS}s]"
        found = self.prometheus.now(f"min(min_over_time({stamps}))")
        return min(found[0].values[0] if found else now, now - 3600) - GRID_SECONDS

    def _since(self, begin: float, now: float) -> list[Record]:
        return [record for point in self._points(begin, now) for record in self._tally.take(point)]

    def _points(self, begin: float, now: float) -> list[Point]:
        step = max(FINEST_SECONDS, (now - begin) / MOST_POINTS)
        start = now - step * max(0, int((now - begin) / step))
        names = f"{PREFIX}({'|'.join(NAMES)})"
        return points_of(self.prometheus.range(f'{{__name__=~"{names}",{self._of}}}', start, now, step))
