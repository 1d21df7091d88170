"""Who did what when: spans lie where records and notes put them, and what is on no record is not drawn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from monitoring import timeline
from monitoring.charts import svg
from monitoring.dossier import Dossier
from monitoring.gantt import COLOURS, gantt
from monitoring.records import StepRecord
from monitoring.report import read, summarise
from monitoring.timeline import GROUPS, LANES, PHASES, SERVING, STEPS, Row, Timeline, of_group, of_publication, of_step
from monitoring.trail import Told, Trail, joined
from tests.broker.test_audit import SHARE, answer, sampling, use
from tests.monitoring.fabricated import BEGAN, Run


def record(**more: Any) -> StepRecord:
    """Step 5, done at 100 s after 10 s."""
    said: dict[str, Any] = {
        "time": 100.0, "step": 5, "steps": 9, "policy_version": 5, "reward": 0.5, "samples": 4,
        "groups": {"trained": 1}, "completion_tokens": 9, "seconds": 10.0, "wait_seconds": 3.0, "tokens": 9,
        "staleness_mean": 0.0, "staleness_max": 0, "staleness_histogram": {0: 9},
    }  # fmt: skip
    return StepRecord.model_validate({**said, **more})


def served(number: int, published: float, seconds: float = 2.0, generator: str = "host-1") -> list[Told]:
    """Both notes on a group that was claimed `seconds` before it was published, and used a second later."""
    ticket = f"t{number:010}p0000000001"
    of = {"wait_seconds": 0.25, "sample_seconds": seconds - 0.5, "verify_seconds": 0.25, "hand_seconds": seconds}
    made = sampling(
        answer("7"), ticket_id=ticket, generator=generator, issued_at=max(0.0, published - seconds - 1), **of
    )
    used = use(
        SHARE, ticket_id=ticket, generator=generator, sample_seconds=seconds - 0.5, published_at=published, step=4
    )
    return [Told(published, made), Told(published + 1, used)]


def dossier(run: Run, *told: list[Told], **more: Any) -> Dossier:
    recipe, progress = read(run.folder)
    trail = Trail(tuple(joined(one for two in told for one in two)))
    return Dossier(run.folder, recipe, progress, summarise(run.folder.path), trail, **more)


def stepped(tmp_path: Path, steps: int = 3, name: str = "demo") -> Run:
    """The first step took a minute, the others ten seconds each; the second begins at `BEGAN` + 60."""
    run = Run(tmp_path, name)
    for number in range(1, steps + 1):
        run.plain_step(number, seconds=60 if number == 1 else 10)
    return run


def test_a_step_s_phases_lie_in_the_learner_s_order_and_end_with_it() -> None:
    loop = {"publish": 0.5, "wait": 3.0, "claim": 1.0, "checkpoint": 0.25, "figures": 0.125}
    update = {"figures": 0.5, "optimizer": 0.25, "pack": 0.125, "forward_backward": 2.0}
    spans = list(of_step(record(loop_seconds=loop, phase_seconds=update)))
    order = ["figures", "checkpoint", "wait", "claim", "pack", "forward_backward", "optimizer", "figures", "publish"]
    assert [span.name for span in spans] == order
    assert spans[-1].end == 100.0
    assert spans[0].begin == pytest.approx(100.0 - sum(loop.values()) - sum(update.values()))
    assert all(a.end == pytest.approx(b.begin) for a, b in pairwise(spans))


def test_of_a_record_without_them_the_wait_is_drawn_and_nothing_is_made_up() -> None:
    spans = [(span.name, span.seconds) for span in of_step(record(phase_seconds={"pack": 1.0}))]
    assert spans == [("wait", 3.0), ("pack", 1.0)]


def test_a_publication_begins_when_the_step_before_is_done() -> None:
    (span,) = of_publication(record(publish_seconds=4.0))
    assert (span.begin, span.seconds) == (90.0, 4.0)
    assert not list(of_publication(record(publish_seconds=0.0)))
    assert not list(of_publication(record()))


def test_what_a_generator_did_for_a_group_ends_with_its_publication() -> None:
    (life,) = joined(served(1, 50.0))
    spans = [(span.name, span.begin, span.seconds) for span in of_group(life)]
    assert spans == [
        ("wait for version", 48.0, 0.25),
        ("sample", 48.25, 1.25),
        ("verify", 49.5, 0.25),
        ("hand in", 49.75, 0.25),
    ]


def test_groups_in_hand_at_the_same_time_take_lanes_and_each_generator_has_its_own(tmp_path: Path) -> None:
    at = BEGAN + 62
    groups = [served(1, at), served(2, at + 1), served(3, at + 2.5), served(4, at, generator="host-2")]
    line = Timeline.of(dossier(stepped(tmp_path), *groups))
    lanes = [(row.process, row.lane, len(row.spans) // len(SERVING)) for row in line.rows]
    assert lanes[1:] == [("host-1", 0, 2), ("host-1", 1, 1), ("host-2", 0, 1)]
    for row in line.rows:
        assert all(a.end <= b.begin + timeline.SLACK for a, b in pairwise(row.spans))


def test_a_group_whose_reply_came_late_was_claimed_later_and_takes_no_lane_of_its_own(tmp_path: Path) -> None:
    first, second = served(1, BEGAN + 65), served(2, BEGAN + 66.5)  # half a second too early for the first one's lane
    late = [Told(BEGAN + 67.25, second[0].note), Told(BEGAN + 68, second[1].note)]
    run = stepped(tmp_path)
    (row,) = (row for row in Timeline.of(dossier(run, first, late)).rows if row.process == "host-1")
    assert [span.begin for span in row.spans if span.name == "sample"] == [BEGAN + 63.25, BEGAN + 65.25]
    prompt = [row for row in Timeline.of(dossier(run, first, second)).rows if row.process == "host-1"]
    assert len(prompt) == 2, "it was told of at once: the two were in hand together"


def test_the_window_is_the_latest_steps_without_the_start_of_the_engines(tmp_path: Path) -> None:
    run = stepped(tmp_path)
    line = Timeline.of(dossier(run, served(1, BEGAN + 20), served(2, BEGAN + 85)))
    assert (line.begin, line.end) == (BEGAN + 60, BEGAN + 85)
    assert [step for step, _ in line.steps] == [2, 3]
    assert len([row for row in line.rows if row.process == "host-1"]) == 1, "the first group was before"
    many = Timeline.of(dossier(stepped(tmp_path, STEPS + 5, "many")))
    assert [step for step, _ in many.steps] == list(range(6, STEPS + 6))


def test_many_groups_shorten_the_window_and_many_lanes_are_counted(tmp_path: Path) -> None:
    groups = [served(n, BEGAN + 60 + 20 * n / (2 * GROUPS)) for n in range(2 * GROUPS)]
    line = Timeline.of(dossier(stepped(tmp_path), *groups))
    assert [step for step, _ in line.steps] == [3]
    lanes = [row for row in line.rows if row.process == "host-1"]
    assert len(lanes) == LANES
    assert f"{LANES} of " in " ".join(line.notes)


def test_without_an_audit_log_the_learner_is_there_and_why_the_others_are_not(tmp_path: Path) -> None:
    line = Timeline.of(dossier(stepped(tmp_path), without="broker.audit_entries = 0"))
    assert {row.process for row in line.rows} == {"learner"}
    assert line.without == "Generators: not on record, broker.audit_entries = 0."


def test_the_picture_knows_every_phase_and_takes_any_name_for_text(tmp_path: Path) -> None:
    assert set(COLOURS) == {*PHASES, *SERVING}
    name = "$\\nope$<b>\x1b[2J" + "n" * 200
    picture = svg(gantt, dossier(stepped(tmp_path), served(1, BEGAN + 62, generator=name))).decode()
    said = "".join(ElementTree.fromstring(picture).itertext())
    assert "$\\nope$<b>" in said
    assert "n" * 30 not in said
    assert "\x1b" not in picture
    assert all(word in said for word in ("learner", "wait for groups", "sample", "seconds since"))


def test_a_run_of_nothing_is_an_empty_picture(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.end("solved")
    line = Timeline.of(dossier(run))
    assert line.rows == ()
    assert svg(gantt, dossier(run)).startswith(b"<?xml")


def test_rows_of_a_process_stand_together(tmp_path: Path) -> None:
    names = [f"host-{n % 40}" for n in range(200)]
    groups = [served(n, BEGAN + 75 + 0.001 * n, generator=name) for n, name in enumerate(names)]
    rows: list[Row] = [r for r in Timeline.of(dossier(stepped(tmp_path), *groups)).rows if r.process != "learner"]
    assert len(rows) == LANES
    assert all(row.lane == 0 for row in rows), "every generator has its first lane before one has its second"
