"""A run of this machine: its folder and its endpoints put together into what a view can draw.

Invariant: looking changes nothing and waits for nobody. A run goes on while a launcher holds its folder or, started by
hand, while its learner answers. Refuses to know screens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from broker.errors import Refused
from broker.run_folder import RunFolder
from monitoring.alarms import Alarm
from monitoring.endpoints import Endpoint, Endpoints
from monitoring.progress import RECENT, Progress
from monitoring.recipe import ViewRecipe, resolved
from monitoring.services import HOST
from monitoring.sight import SILENT_SECONDS, Sight

GENERATOR_COUNTERS = TOKENS, GROUPS = "generator_tokens_total", "generator_groups_total"


def began(folder: RunFolder, progress: Progress) -> float | None:
    """When the run began: the oldest trace of it, of the launcher (files made once, or at its start) or of a record."""
    traces = [_changed(path) for path in (folder.pid, folder.phase, folder.recipe, folder.log("").parent)]
    records = [r.time - r.seconds for r in progress.steps[:1]] + [r.time for r in progress.evaluations[:1]]
    return min([*records, *(t for t in traces if t is not None)], default=None)


class Watch:
    """Looks at one run whenever it is asked to."""

    def __init__(self, folder: RunFolder, recipe: ViewRecipe, clock: Callable[[], float] = time.time) -> None:
        self.folder, self.recipe, self._clock = folder, recipe, clock
        self.progress = Progress(folder.steps)
        self._recipe_changed: tuple[float | None, float | None] = (None, None)
        self._observe({})

    def _observe(self, known: Mapping[int, Endpoint]) -> None:
        """Ask all processes; of one that is `known` by its port, its last answer stays, and how fast it is."""
        settings = self.recipe.monitoring
        self._learner = known.get(settings.learner_port) or Endpoint(settings.host, settings.learner_port)
        self._generators = [
            known.get(port) or Endpoint(settings.host, port, GENERATOR_COUNTERS)
            for port in (settings.port_of(number) for number in range(self.recipe.generator.count))
        ]
        self._endpoints = Endpoints([self._learner, *self._generators]).start()
        self._alarm = Alarm(HOST, settings.prometheus_port, self.recipe.run.name).start()

    @property
    def undecided(self) -> bool:
        """Without a launcher only the learner's answer tells whether the run goes on, and nobody has been asked yet."""
        by_hand = not self.folder.finished and self.folder.launcher() is None
        return by_hand and self._learner.port != 0 and self._endpoints.rounds == 0

    def look(self) -> Sight:
        """Everything that is known now."""
        self._follow_recipe()
        new, now, launched = self.progress.read(), self._clock(), self.folder.launcher() is not None
        going = not self.folder.finished and (launched or self._answers(now))
        status, since = self._status(launched) if going else (self._ended(), None)
        return Sight(
            name=self.recipe.run.name,
            about=self.recipe.model_name,
            steps=self.recipe.run.steps,
            max_staleness=self.recipe.run.max_staleness,
            progress=self.progress,
            new=new,
            now=now,
            began=began(self.folder, self.progress),
            status=status,
            status_since=since,
            learner=self._learner.answer if going else None,
            generators={f"generator {i}": g.answer if going else None for i, g in enumerate(self._generators)},
            tokens_per_second=self._rate(TOKENS, now),
            groups_per_second=self._rate(GROUPS, now),
            going=going,
            alarms=self._alarm.said,
        )

    def close(self) -> None:
        """Ask nobody any more."""
        self._endpoints.stop()
        self._alarm.stop()

    def _follow_recipe(self) -> None:
        """The launcher writes the recipe as resolved whenever it begins, `make scale` how many generators there are."""
        changed = _changed(self.folder.recipe), _changed(self.folder.generators)
        if changed[0] is None or changed == self._recipe_changed:
            return
        try:
            recipe = resolved(self.folder)
        except Refused:
            return  # caught while it was being written: the next look sees it whole
        self._recipe_changed = changed
        if recipe != self.recipe:
            scaled = recipe.model_copy(update={"generator": self.recipe.generator}) == self.recipe
            known = {one.port: one for one in self._endpoints.all} if scaled else {}
            self.close()
            self.recipe = recipe
            self._observe(known)

    def _answers(self, now: float) -> bool:
        """Whether the learner on our port lives and is that of our folder: it names the time of its last step, which
        is the very number that it wrote down."""
        answer = self._learner.answer
        if answer is None or now - answer.at > SILENT_SECONDS:
            return False
        stamp = answer.figure("learner_last_step_timestamp_seconds")
        return stamp == 0.0 or any(abs(stamp - r.time) < 1e-3 for r in self.progress.steps[-RECENT:])

    def _status(self, launched: bool) -> tuple[str, float | None]:
        """The launcher's phase and since when, until a step has been taken under it."""
        step = self.progress.steps[-1] if self.progress.steps else None
        phase_since = _changed(self.folder.phase) if launched else None
        if phase_since is not None and not (step and step.time > phase_since):
            return _text(self.folder.phase) or "starting", phase_since
        if self.progress.outcome or (step and step.step >= step.steps):
            return "finishing", None
        return ("training" if step else "starting"), None

    def _ended(self) -> str:
        return (self.progress.outcome or "finished") if self.folder.finished else "not running"

    def _rate(self, counter: str, now: float) -> float | None:
        heard = [g for g in self._generators if g.answer and now - g.answer.at < SILENT_SECONDS]
        rates = [g.rates[counter].per_second for g in heard]
        known = [rate for rate in rates if rate is not None]
        return sum(known) if known else None


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
