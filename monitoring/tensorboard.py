"""`python -m monitoring.tensorboard RUN`: a run's records as TensorBoard's event files, until the run is over.

Invariant: every number of a record is one scalar, at the step and the time of the record; a step that was taken again
replaces what stood there. Refuses to know what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from broker.cli import guarded
from broker.errors import Refused
from monitoring.dossier import locate
from monitoring.signals import Signals
from monitoring.tail import Tail

EVERY_SECONDS = 5.0
PLACES = {"time", "step", "steps"}  # where a record belongs, no figures of it


class Events:
    """An event file in `folder`, begun anew. Raises `Refused` without TensorBoard."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise Refused("TensorBoard is not installed", "pip install tensorboard") from None
        self._of, self._summary, self._newest = event_pb2, summary_pb2.Summary, 0
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = EventFileWriter(str(folder))

    def add(self, record: Mapping[str, Any]) -> None:
        """One line of steps.jsonl."""
        if "step" in record:
            if record["step"] <= self._newest:  # after a crash
                begins = self._of.SessionLog(status=self._of.SessionLog.START)
                self._add(record["step"], record["time"], session_log=begins)
            self._newest = record["step"]
            self._scalars("", record, record["step"], record["time"])
        elif "eval" in record:
            figures = record["eval"]
            self._scalars(f"eval {figures['label']}/", figures, figures["policy_version"], record["time"])

    def _scalars(self, prefix: str, figures: Mapping[str, Any], step: int, at: float) -> None:
        values = [self._summary.Value(tag=f"{prefix}{name}", simple_value=value) for name, value in numbers(figures)]
        self._add(step, at, summary=self._summary(value=values))

    def _add(self, step: int, at: float, **what: Any) -> None:
        self._writer.add_event(self._of.Event(step=step, wall_time=at, **what))

    def flush(self) -> None:
        """To the disk."""
        self._writer.flush()

    def close(self) -> None:
        """The last of it."""
        self._writer.close()


def numbers(figures: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, float]]:
    """Every number by its name, those of a table under the table's: `groups/trained`."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{inside}{name}/")
        elif isinstance(value, int | float) and (inside or name not in PLACES):
            yield f"{inside}{name}", float(value)


def records(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """Of those lines that hold one."""
    for line in lines:
        try:
            record = json.loads(line)  # with NaN: the norm of an update that was thrown away
        except ValueError:  # as in all views, what nobody can read is left out
            continue
        if isinstance(record, dict):
            yield record


@guarded
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="monitoring.tensorboard", description="a run for TensorBoard")
    parser.add_argument("run", type=Path, help="its folder, or its name")
    run = locate(parser.parse_args().run)
    if not run.path.is_dir():
        raise Refused(f"no run folder {run.path}", "name one, for example runs/demo")
    tail, over = Tail(run.steps), False
    with Signals() as signals:
        events = Events(run.tensorboard)
        print(f"tensorboard --logdir {run.tensorboard}", flush=True)
        while not over:
            over = run.finished  # read before the lines: what came before the end is among them
            lines = tail.read()
            if tail.begun_anew:
                events.close()
                events = Events(run.tensorboard)
            for record in records(lines):
                events.add(record)
            events.flush()
            over = over or signals.wait(EVERY_SECONDS)
        events.close()


if __name__ == "__main__":
    main()
