"""Problems that are rows: of a file of JSON lines, of a folder with one for each split, or of a hub's dataset.

Invariant: what is set aside depends on the rows and on how many, never on a run's seed; a row that is not what it must
be is refused by its place, or left out and counted where a task says so. Refuses to know what the fields mean.
"""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from broker.errors import Refused
from producer.tasks.base import Problem
from producer.tasks.settings import RowsSettings

log = structlog.get_logger("tasks")

SPLIT_SEED = "headrace rows 1"
Row = dict[str, Any]
Reader = Callable[[Row], Problem]  # raises `ValueError` for a row that is no problem


@dataclass(frozen=True)
class Source:
    """Rows and where they stand; with `leave_out`, one that is no problem is no reason to refuse the others."""

    name: str
    rows: Iterable[Any]
    leave_out: bool = False

    def problems(self, read: Reader) -> list[Problem]:
        """Raises `Refused`, naming the row."""
        out, wrong = list[Problem](), list[str]()
        for number, row in enumerate(self.rows, 1):
            if not isinstance(row, dict):
                raise Refused(f"{self.name}, problem {number}: not an object with fields")
            try:
                out.append(read(row))
            except ValueError as error:
                wrong.append(f"problem {number}: {error}")
                if not self.leave_out:
                    raise Refused(f"{self.name}, {wrong[0]}") from None
        if not out and wrong:
            raise Refused(f"{self.name}: none of its {len(wrong)} problems can be used, such as {wrong[0]}")
        if not out:
            raise Refused(f"{self.name} holds no problems")
        if wrong:
            log.warning("problems left out", source=self.name, left_out=len(wrong), kept=len(out), first=wrong[0])
        return out


def sources(path: Path | None, held_out_path: Path | None, hub: str | None, splits: Sequence[str]) -> list[Source]:
    """One source, of which some rows are to be set aside, or two: to train on and to hold out. Raises `Refused`."""
    if path is None:
        return [_hub(str(hub), split) for split in splits]
    if not path.is_file() and path.suffix != ".jsonl":
        return [jsonl(path / f"{split}.jsonl") for split in ("train", "test")]
    return [jsonl(path)] if held_out_path is None else [jsonl(path), jsonl(held_out_path)]


def splits(found: Sequence[Source], read: Reader, held_out: int) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """To train on and held out: `held_out` of the second source, or set aside of the only one. Raises `Refused`."""
    first = found[0].problems(read)
    pool = found[1].problems(read) if len(found) > 1 else first
    if held_out > len(pool) - (len(found) == 1):
        raise Refused(f"task.held_out = {held_out}, but {found[-1].name} has {len(pool)} problems")
    rng = random.Random(SPLIT_SEED)
    order = sorted(range(len(pool)), key=lambda _: rng.random())
    aside = order[:held_out]
    kept = first if len(found) > 1 else [pool[i] for i in sorted(order[held_out:])]
    return tuple(kept), tuple(pool[i] for i in aside)


def problems_of(
    settings: RowsSettings, read: Callable[[Row], tuple[str, str]], leave_out: bool = False
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """To train on and held out, as a section describes it; `read` gives prompt and gold of a row. Raises `Refused`.

    `leave_out`: rows that are no problems are left out and counted.
    """

    def problem(row: Row) -> Problem:
        return Problem(*read(row), str(row.get(settings.level_field, "")) if settings.level_field else "")

    found = sources(settings.path, settings.held_out_path, settings.hub, settings.hub_splits)
    wanted = [Source(source.name, _wanted(source.rows, settings.only), leave_out) for source in found]
    return splits(wanted, problem, settings.held_out)


def _wanted(rows: Iterable[Any], only: Mapping[str, Sequence[str]]) -> Iterator[Any]:
    """Those that have one of these values in each of these fields."""
    return (r for r in rows if not isinstance(r, dict) or all(str(r.get(f)) in vs for f, vs in only.items()))


def text(row: Row, field: str) -> str:
    """A field that must hold text. Raises `ValueError`."""
    value = row.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"needs text in the field `{field}`")
    return value.strip()


def jsonl(file: Path) -> Source:
    """The rows of a file of JSON lines. Raises `Refused`."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # splitlines() also breaks at U+2028 inside a text
    except UnicodeDecodeError:
        raise Refused(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise Refused(f"cannot read {file}: {error.strerror}", "task.path names JSON lines, or their folder") from None
    return Source(str(file), _parsed(file, lines))


def _parsed(file: Path, lines: Sequence[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Refused(f"{file}, line {number}: not JSON ({error})") from None


def _hub(name: str, split: str) -> Source:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise Refused(f"{name} has no local data", "set task.path to a local copy, or install `datasets`") from None
    config, _, part = name.partition(":")
    try:
        return Source(name, datasets.load_dataset(config, part or None, split=split))
    except (OSError, ValueError, RuntimeError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(f"cannot load {name} from the hub ({cause})", "set task.path to a local copy") from None
