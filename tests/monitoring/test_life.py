"""The life of a group on a screen: what is known is there, what is not known is not, and nothing is obeyed."""

from __future__ import annotations

import io
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from broker.audit import Excerpt, Share, Span
from monitoring.life import excerpt, shown, visible
from monitoring.trail import Life, joined
from tests.broker.test_audit import SHARE, TICKET, answer, sampling, use
from tests.monitoring.test_trail import told


def screen(life: Life, width: int = 80, colours: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=colours, highlight=False, color_system=None).print(shown(life))
    return out.getvalue()


def words(life: Life, **more: Any) -> str:
    return " ".join(screen(life, **more).split())


def trained(*shares: Share, **more: Any) -> Life:
    spans = (Span(policy_version=9, start=0, end=2), Span(policy_version=10, start=2, end=3))
    right = answer("It is 7.", components={"correct": 1.0, "formatted": 0.5}, spans=spans, truncated=True)
    wrong = answer("It is 8.", reward=0.0, components={"correct": 0.0}, failed="")
    made = sampling(right, wrong, prompt_tokens=12, level="2 digits", deliveries=2, **more)
    used = use(*(shares or (SHARE, SHARE)), generator="host-1", step=12, version=11, staleness=2)
    (life,) = joined(told(made, used))
    return life


def test_a_trained_group_in_full() -> None:
    said = words(trained(), width=200)
    for part in (
        f"{TICKET} trained",
        "number 123, problem 45 (2 digits), seed 9, asks for version 3 or newer",
        "by host-1 at versions 3, 9, 10, delivery 2",
        "trained in step 12 at version 11, staleness 2; version 12 has learnt from it",
        "reward 1, the mean of 1 1",
        "prompt, 12 tokens What is 3 + 4?",
        "gold answer 7",
        "1 reward 1 advantage +0.5 correct 1 formatted 0.5",
        "π/μ 1 (0.9 … 1.1) of its tokens clipped 0.0%",
        "3 tokens of version 9 (0–2), version 10 (2–3), log μ -0.500 a token, cut off by sampling.max_tokens It is 7.",
        "3 tokens of version 3, log μ -0.500 a token It is 8.",
    ):
        assert part in said, said


def test_one_without_a_verdict_shows_no_numbers_of_the_learner_s() -> None:
    (life,) = joined(told(sampling(answer("7"))))
    said = words(life)
    assert "no verdict yet" in said
    assert "1 reward 1 correct 1" in said
    assert not [word for word in ("advantage", "π/μ", "used", "staleness", "because") if word in said]


def test_one_that_failed_before_it_was_sampled_says_why_and_what_is_missing() -> None:
    (life,) = joined(told(use(verdict="failed", reason="delivered 3 times, never answered")))
    said = words(life)
    assert "number 123; what its generator told is not in the log" in said
    assert "because delivered 3 times, never answered" in said
    assert "reward" not in said


def test_what_is_not_a_number_is_said_and_what_was_cut_is_counted() -> None:
    lost = Share(reward=1.0, tokens=3, advantage=0.5)
    said = words(trained(lost, lost, prompt=Excerpt(head="What is", left_out=12345, tail="?"), answers_left_out=6))
    assert "π/μ is not a number" in said
    assert "What is […12,345 characters left out…] ?" in said
    assert "6 more rollouts had no room in the log (broker.audit_bytes)" in said


def test_lines_of_an_answer_stay_lines_and_brackets_are_no_markup() -> None:
    text = "one\n[red]two[/red]\n\n[/]"
    assert excerpt(Excerpt.of(text)).plain == text
    (life,) = joined(told(sampling(answer(text))))
    lines = [line.rstrip() for line in screen(life).splitlines()]
    assert lines[-4:] == ["    one", "    [red]two[/red]", "", "    [/]"]


NASTY = "a\x1b[2J\x1b]0;title\x07b\rc\x08\x9b31m\u202ed\u2028e\ue000\t"


def test_nothing_that_a_model_wrote_reaches_the_terminal_but_as_printable_text() -> None:
    everywhere = answer(NASTY, failed=NASTY, components={NASTY[:20]: 1.0})
    made = sampling(
        everywhere, prompt=Excerpt.of(NASTY), gold=Excerpt.of(NASTY), failed=Excerpt.of(NASTY), level=NASTY[:20],
        generator=NASTY, ticket_id=NASTY[:20],
    )  # fmt: skip
    used = use(verdict="failed", reason=NASTY, ticket_id=NASTY[:20], generator=NASTY)
    for notes in ([made, used], [made], [used]):
        (life,) = joined(told(*notes))
        said = screen(life)
        assert not [c for c in said if c != "\n" and not c.isprintable()], repr(said)
        assert "\\x1b[2J" in said or notes == [used]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_visible_text_is_printable_whatever_it_was(text: str) -> None:
    shown_text = visible(text).plain
    assert all(c == "\n" or c.isprintable() for c in shown_text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf") for c in shown_text if c != "\n")
    if text.isprintable():
        assert shown_text == text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    life = trained(prompt=Excerpt.of("w" * 500), gold=Excerpt.of("\N{WATER WAVE}" * 100))
    assert max(len(line) for line in screen(life, width).splitlines()) <= width
