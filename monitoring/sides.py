"""Both sides of a run against each other: how fast each is, what it does or waits for, and each generator by itself.

Invariant: a process that has not been heard of lately is never shown as if it were at work. Refuses to know where
figures come from.
"""

from __future__ import annotations

from rich.text import Text

from monitoring.bars import BAD, ROUTINE, WRONG, figure
from monitoring.endpoints import Answer
from monitoring.lines import minutes
from monitoring.sight import SILENT_SECONDS, Sight

SPEED = 20  # cells
GENERATOR_WAITS = {"engine": "starting the engine", "learner": "waits for the learner"}
LEARNER_WAITS = {
    "none": "busy",
    "model": "loads the model",
    "batch": "waits for groups",
    "ticket": "waits for ticket",
    "no live generator": "waits: no live generator",
    "publish": "waits for a publication",
    "task card": "waits for a generator to register the task",
    "replay": "repeats",
    "evaluation": "waits for the evaluation",
    "checkpoint": "waits for the checkpoint",
}


def sides(sight: Sight, room: int, more: int) -> list[tuple[str, Text]]:
    """The rows of both, in `room` cells, with bars that are `more` cells longer than on 80 columns."""
    speeds = _speeds(sight, SPEED + more) if sight.step else (None, None)
    states = (_generators(sight, room), _learner(sight)) if sight.going else (None, None)
    rows: list[tuple[str, Text]] = []
    for label, speed, state in zip(("generators", "learner"), speeds, states, strict=True):
        about = [text for text in (speed, state) if text is not None]
        rows += [(label if i == 0 else "", text) for i, text in enumerate(about)]
    return rows


def each_generator(sight: Sight, most: int) -> list[tuple[str, Text]]:
    """One row a generator, `most` rows."""
    names = list(sight.generators)
    shown = names if len(names) <= most else names[: most - 1]
    rows = [("each" if i == 0 else "", _one(name, sight)) for i, name in enumerate(shown)]
    if len(shown) < len(names):
        rows.append(("", Text(f"+{len(names) - len(shown)} more", ROUTINE)))
    return rows


def _one(name: str, sight: Sight) -> Text:
    answer, text = sight.generators[name], Text(f"{name:<22}", ROUTINE)
    silent = _silence(answer, sight)
    if silent is not None or answer is None:
        return text.append_text(silent or Text())
    slots, busy = answer.figure("generator_slots"), answer.figure("generator_in_flight_groups")
    text.append(f"{busy:>5.0f} of {slots:<5.0f}busy   version {answer.figure('generator_policy_version'):<8.0f}")
    text.append(f"{answer.figure('generator_groups_total'):>10.0f} groups   ")
    style = "default" if answer.healthy else WRONG
    return text.append(_wait(answer, sight) or f"last group {minutes(sight.now - answer.progressed)} ago", style)


def _speeds(sight: Sight, cells: int) -> tuple[Text, Text]:
    """What is published, as the generators or else the last steps say, and what is trained on in the last steps."""
    last = sight.progress.last()
    sampled, groups = sight.tokens_per_second, sight.groups_per_second
    if sampled is None or groups is None:
        sampled, groups = last.per_second(last.sampled), last.per_second(sum(last.groups.values()))
    trained, batch = last.per_second(last.trained), last.per_second(last.groups["trained"])
    top = max(sampled or 0.0, trained or 0.0, 1e-9)
    return _speed(sampled, groups, top, cells, "magenta"), _speed(trained, batch, top, cells, "blue")


def _speed(tokens: float | None, groups: float | None, top: float, cells: int, style: str) -> Text:
    full = round(cells * (tokens or 0.0) / top)
    text = Text.assemble(("━" * full, style), " " * (cells - full), (f"{figure(tokens, 0):>8}", "bold"))
    return text.append(" tok/s", ROUTINE).append(f"{figure(groups):>9}").append(" groups/s", ROUTINE)


def _learner(sight: Sight) -> Text:
    answer = sight.learner
    silent = _silence(answer, sight)
    if silent is not None or answer is None:
        return silent or Text()
    what = LEARNER_WAITS.get(answer.reason, f"waits: {answer.reason}")
    style = WRONG if not answer.healthy else BAD if answer.reason == "no live generator" else "default"
    text = Text(f"{what} {answer.detail}".strip(), style)
    return text if answer.since is None else text.append(f" · {minutes(sight.now - answer.since)}", ROUTINE)


def _silence(answer: Answer | None, sight: Sight) -> Text | None:
    if answer is None:
        return Text("no answer" if sight.step else "not up yet", ROUTINE)
    silent = sight.now - answer.at
    return Text(f"no answer for {minutes(silent)}", BAD) if silent > SILENT_SECONDS else None


def _generators(sight: Sight, room: int) -> Text:
    """All of them in one row: how many are up, how full their slots are, what they hold if there is room for it."""
    answers = list(sight.generators.values())
    heard = [a for a in answers if a and sight.now - a.at <= SILENT_SECONDS]
    if not answers and sight.step:
        return Text("none", BAD)
    if not heard:
        return Text("no answer" if any(answers) or sight.step else "not up yet", ROUTINE)
    slots = sum(a.figure("generator_slots") for a in heard)
    busy = sum(a.figure("generator_in_flight_groups") for a in heard)
    versions = sorted({int(a.figure("generator_policy_version")) for a in heard})
    up = f"{len(heard)} of {len(answers)} up" if len(answers) > 1 else ""
    parts = [up, f"{busy:.0f} of {slots:.0f} slots busy" if slots else ""]
    longest = min((a for a in heard if a.reason != "none"), key=lambda a: a.since or 0.0, default=None)
    if longest:
        parts.append(_wait(longest, sight))
    elif not slots:
        parts.append(GENERATOR_WAITS["engine"])
    else:
        parts.append(f"last group {minutes(sight.now - max(a.progressed for a in heard))} ago")
    text = Text(" · ".join(part for part in parts if part), "default" if all(a.healthy for a in heard) else WRONG)
    held = f" · version {'–'.join(str(v) for v in versions[:1] + versions[1:][-1:])}"
    return text.append(held) if slots and len(text) + len(held) <= room else text


def _wait(answer: Answer, sight: Sight) -> str:
    """What a generator waits for, empty if for nothing."""
    if answer.reason == "none" or answer.since is None:
        return ""
    what = GENERATOR_WAITS.get(answer.reason, f"waits for a {answer.reason}")
    return f"{what} · {minutes(sight.now - answer.since)}"
