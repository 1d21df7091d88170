"""What a completion declares: read where it stands, not chosen for the model among several, and never calculated."""

from __future__ import annotations

import pytest

from producer.tasks import Problem
from producer.verifiers.numeric import score

LONG = "A question that ends with an example of the form: write \\boxed{18} at the end."


def verdict(text: str, gold: str = "18", prompt: str = "?") -> tuple[float, float]:
    said = score(text, Problem(prompt, gold), answer=("boxed", "hashes", "tags"))
    return said.components["correct"], said.components["formatted"]


RIGHT = r"""#### 18|####18|#### 18.|#### **18**|#### 18.00|#### 018|#### $18|#### \$18|#### $18$|#### 18 dollars per day
#### 18%|#### 18 m^2|#### \boxed{18}|\boxed{18\text{ dollars}}|\boxed{18\%}|\boxed{x = 18}|\boxed{\frac{36}{2}}
\boxed{36/2}|<answer>18</answer>|\fbox{18}|\boxed{\boxed{18}}|\boxed{18}, again \boxed{18.0}
<think>\boxed{5}</think>\boxed{18}"""
WRONG = r"""18|### 18|####|\boxed{18|#### 17|#### -18|#### 180|#### 1.8|#### 18,000|#### 1,8|#### 17 or 18|#### 18, 19
#### 9 9
#### 17 + 1|#### 2 * 9|#### 18 million|#### 18 and a half|#### [0, 18]|#### 18 \pm 1|#### \frac{18}{0}|#### eighteen
\boxed{17} \boxed{18}|\boxed{18} \boxed{17}|\boxed{18} #### Step 1|<think>\boxed{18}|<think>\boxed{18}</think>
\boxed{10^10^10}|\boxed{__import__('os').system('true')}|\boxed{NaN}|\boxed{\phantom{18}}|\boxed{١٨}"""


@pytest.mark.parametrize("text", RIGHT.replace("\n", "|").split("|"))
def test_a_declared_number_scores_in_its_natural_forms(text: str) -> None:
    assert verdict(text) == (1.0, 1.0)


@pytest.mark.parametrize("text", WRONG.replace("\n", "|").split("|"))
def test_what_is_not_the_number_scores_nothing(text: str) -> None:
    assert verdict(text)[0] == 0.0


def test_an_echo_of_the_prompt_declares_nothing() -> None:
    assert verdict(LONG, prompt=LONG) == (0.0, 0.0)
    assert verdict(f"{LONG} \\boxed{{18}}", prompt=LONG) == (1.0, 1.0)


def test_thousands_of_open_boxes_are_no_answer() -> None:
    assert verdict("\\boxed{" * 5000) == (0.0, 0.0)
    assert verdict("\\boxed{" + "9" * 5000 + "}") == (0.0, 0.0)
