"""The alerts of a run, as a Prometheus has them.

Invariant: `none` is said only where our rules are loaded and the run is scraped; whoever cannot know says so, and why.
Refuses to know what an alert means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from broker.errors import Refused
from monitoring.prometheus_api import Prometheus, RaisedAlert
from monitoring.rounds import Rounds

SEVERITIES = ("critical", "warning")
OURS = ("headrace_", "headrace:")
EVERY_SECONDS = 3.0
TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Alert:
    """One that fires, or is about to (`pending`); `since` is seconds since the epoch."""

    name: str
    severity: str
    since: float
    pending: bool
    where: str = ""  # the instance, where the name does not tell it

    @property
    def rank(self) -> tuple[bool, int, float]:
        """What sorts the most urgent first."""
        known = SEVERITIES.index(self.severity) if self.severity in SEVERITIES else len(SEVERITIES)
        return self.pending, known, self.since


@dataclass(frozen=True)
class Alarms:
    """What is known of a run's alerts, the most urgent first; `unknown` says why nothing is."""

    alerts: Sequence[Alert] = ()
    unknown: str = ""
    now: float = 0.0  # by Prometheus' clock


def alarms_of(prometheus: Prometheus, run: str) -> Alarms:
    """The alerts of a run, and those of no run. Raises `Refused` if no Prometheus answers."""
    rules = prometheus.alert_rules()
    if not any(word in rule.query for rule in rules for word in OURS):
        return Alarms(unknown="Prometheus has none of our rules")
    scraped = prometheus.now(f"up{{run={json.dumps(run)}}}")
    if not scraped:
        return Alarms(unknown="Prometheus does not scrape this run")
    raised = [alert for rule in rules for alert in rule.alerts if alert.labels.get("run", run) == run]
    alerts = sorted((_alert(one) for one in raised), key=lambda alert: alert.rank)
    return Alarms(alerts, now=scraped[0].times[0])


def _alert(raised: RaisedAlert) -> Alert:
    labels = raised.labels
    alone = labels.get("job") in ("learner", "exporter")  # of which a run has one
    return Alert(
        name=labels.get("alertname", "?"),
        severity=labels.get("severity", ""),
        since=raised.since.timestamp(),
        pending=raised.state == "pending",
        where="" if alone else labels.get("instance", ""),
    )


class Alarm(Rounds):
    """Asks for them."""

    title, pause = "alarms", EVERY_SECONDS

    def __init__(self, host: str, port: int, run: str) -> None:
        super().__init__()
        self._prometheus, self._port, self._run = Prometheus(f"http://{host}:{port}", TIMEOUT_SECONDS), port, run
        self.said: Alarms | None = None  # before the first answer

    def _round(self) -> None:
        self.said = self._ask()

    def _ask(self) -> Alarms:
        try:
            return alarms_of(self._prometheus, self._run)
        except Refused:  # the row says it, and we ask again
            return Alarms(unknown=f"no Prometheus on :{self._port}, `make monitoring` starts one")
