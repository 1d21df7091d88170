"""One number: GSM8K's own answers, what counts as them, and what does not."""

from __future__ import annotations

import json
import os
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.tasks import Problem
from producer.verifiers.numeric import read, score

GSM8K_DIR = os.environ.get("GSM8K_DIR")
FORMATS = ("hashes", "boxed")


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("#### 18", "18"),
        ("so 9 * 2 = 18\n#### 18", "18"),
        ("####18", "18"),
        ("####\n18", "18"),
        ("#### 18.", "18"),
        ("#### **18**", "18"),
        ("#### 18.00", "18"),
        ("#### 018", "18"),
        ("#### $18", "18"),
        ("#### \\$18", "18"),
        ("#### $18$", "18"),
        ("#### 18 dollars", "18"),
        ("#### 18 dollars per day", "18"),
        ("#### 18%", "18"),
        ("#### 18 m^2", "18"),
        ("#### 70,000", "70000"),
        ("#### $70,000.00", "70000"),
        ("#### 70{,}000", "70000"),
        ("#### -7", "-7"),
        ("#### -$7", "-7"),
        ("#### \u22127", "-7"),
        ("#### 0.5", "0.5"),
        ("#### .5", "0.5"),
        ("#### 1/2", "0.5"),
        ("#### \\frac{1}{2}", "0.5"),
        ("#### \\boxed{18}", "18"),
        ("The answer is \\boxed{18}.", "18"),
        ("\\boxed{18\\text{ dollars}}", "18"),
        ("\\boxed{18\\%}", "18"),
        ("\\boxed{x = 18}", "18"),
        ("\\boxed{\\frac{36}{2}}", "18"),
    ],
)
def test_the_number_counts_however_it_is_written(text: str, gold: str) -> None:
    verdict = score(text, Problem("?", gold), answer=FORMATS)
    assert (verdict.reward, verdict.components) == (1.0, {"correct": 1.0, "formatted": 1.0})


@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        ("", 0.0),
        ("18", 0.0),
        ("The answer is 18.", 0.0),
        ("### 18", 0.0),
        ("####", 0.0),
        ("\\boxed{18", 0.0),
        ("#### 18\n#### 17", 1.0),
        ("#### 17\n#### 18", 1.0),  # two answers
        ("\\boxed{17}, no: \\boxed{18}", 1.0),
        ("#### 17\n\\boxed{18}", 1.0),
        ("<think>#### 18</think> I do not know.", 0.0),
        ("<think>#### 18", 0.0),
        ("#### 17\n18", 1.0),
        ("#### -18", 1.0),
        ("#### 180", 1.0),
        ("#### 1.8", 1.0),
        ("#### 18.5", 1.0),
        ("#### 17.9999999", 1.0),
        ("#### 18,000", 1.0),
        ("#### 1,8", 0.0),
        ("#### 17 or 18", 0.0),
        ("#### 18 or 17", 0.0),
        ("#### 18, 19", 0.0),
        ("#### 9 9", 0.0),  # not 9 + 9
        ("#### 17 + 1", 0.0),  # to calculate is the model's work
        ("#### 2 * 9", 0.0),
        ("#### 18 million", 0.0),
        ("#### 18 thousand dollars", 0.0),
        ("#### 18 and a half", 0.0),
        ("#### \\{18\\}", 0.0),
        ("#### [0, 18]", 0.0),
        ("#### 18 \\pm 1", 0.0),
        ("#### \\frac{18}{0}", 0.0),
        ("#### The answer is 18", 0.0),
        ("#### eighteen", 0.0),
    ],
)
def test_nothing_else_counts(text: str, formatted: float) -> None:
    verdict = score(text, Problem("?", "18"), answer=FORMATS)
    assert (verdict.reward, verdict.components) == (0.0, {"correct": 0.0, "formatted": formatted})


@given(st.fractions(max_denominator=10**6))
def test_a_number_is_itself_in_every_form_and_no_other(value: Fraction) -> None:
    top, bottom = value.numerator, value.denominator
    sign = "-" if value < 0 else ""
    for form in (
        f"{top}/{bottom}",
        f"{sign}\\frac{{{abs(top)}}}{{{bottom}}}",
        f"${top}/{bottom}$",
        f"x = {top}/{bottom}",
    ):
        assert read(form) == value
    assert read(f"{top + 1}/{bottom}") != value


@given(st.integers(-(10**12), 10**12))
def test_an_integer_may_carry_separators_units_and_zeros(number: int) -> None:
    for form in (
        f"{number:,}",
        f"{number}.00",
        f"${number}",
        f"{number} apples",
        f"\\text{{{number} km}}",
        f"{number}\\%",
    ):
        assert read(form) == number, form


def test_a_tolerance_is_allowed_where_it_is_asked_for() -> None:
    problem = Problem("?", "3.14159")
    assert score("\\boxed{3.14}", problem).reward == 0.0
    assert score("\\boxed{3.14}", problem, tolerance=0.01).reward == 1.0
    with pytest.raises(ValueError, match="is no number"):
        score("\\boxed{1}", Problem("?", "many"))


def rows() -> list[str]:
    """The 8,792 gold answers as their authors wrote them, working and all."""
    files = [Path(str(GSM8K_DIR)) / f"{split}.jsonl" for split in ("train", "test")]
    return [json.loads(line)["answer"] for file in files for line in file.read_text("utf-8").split("\n") if line]


@pytest.mark.skipif(not GSM8K_DIR, reason="GSM8K_DIR names no directory with train.jsonl and test.jsonl")
def test_every_gold_answer_of_gsm8k_is_itself_in_its_natural_forms_and_no_other() -> None:
    golds = []
    for answer in rows():
        gold = answer.rpartition("####")[2].strip().replace(",", "")
        golds.append(gold)
        assert score(answer, Problem("?", gold), answer=FORMATS).reward == 1.0, answer
    assert len(golds) == 8792
    others = random.Random(0).sample(golds, len(golds))
    for gold, other in zip(golds, others, strict=True):
        problem, number = Problem("?", gold), int(gold)
        forms = (
            f"#### {gold}",
            f"#### ${gold}",
            f"#### {number:,}",
            f"\\boxed{{{gold}}}",
            f"#### {gold}.00",
            f"#### {gold} cm",
        )
        for right in forms:
            assert score(f"Thus.\n{right}", problem, answer=FORMATS).reward == 1.0, right
        for wrong in (f"#### {gold}1", f"#### {number + 1}", f"#### {-number or 1}", f"{gold}", f"#### {gold}.5"):
            assert score(f"Thus.\n{wrong}", problem, answer=FORMATS).reward == 0.0, wrong
        if other != gold:
            assert score(f"#### {other}", problem, answer=FORMATS).reward == 0.0
