"""Mixtures, weights of components, and sections that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.errors import Refused
from broker.loading import load
from producer.settings import GeneratorRecipe
from tests.producer.tasks.made import complaint, made

SUMS: dict[str, Any] = {"name": "addition", "held_out": 4}
REACH: dict[str, Any] = {"name": "countdown", "problems": 20, "held_out": 2, "weight": 3.0}


def test_a_mixture_holds_every_problem_of_its_parts_in_their_splits() -> None:
    task = made(name="mixture", parts=[SUMS, REACH, SUMS])
    assert [(p.name, p.weight) for p in task.parts] == [("addition", 1.0), ("countdown", 3.0), ("addition 2", 1.0)]
    card = task.card()
    assert [(p.name, p.train, p.weight) for p in card.parts] == [
        ("addition", 96, 1.0),
        ("countdown", 20, 3.0),
        ("addition 2", 96, 1.0),
    ]
    assert [p.part for p in task.train] == [0] * 96 + [1] * 20 + [2] * 96
    assert [p.part for p in task.held_out] == [0, 1, 2, 0, 1, 2, 0, 2, 0, 2], "the first few stand for all"
    assert [card.labels[label][0] for label in card.held_out_labels] == [p.part for p in task.held_out]


def test_weights_are_for_components_that_there_are() -> None:
    task = made(**REACH | {"weight": 1.0}, reward={"correct": 1.0, "formatted": 0.1, "length": -0.05, "latin": 0.1})
    assert dict(task.parts[0].reward) == {"correct": 1.0, "formatted": 0.1, "length": -0.05, "latin": 0.1}
    assert task.card().components == ("correct", "formatted", "latin", "length")
    with pytest.raises(Refused, match=r"countdown has no component speed: it has arabic, correct, .*formatted"):
        made(**REACH, reward={"speed": 1.0})


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"name": "nothing"}, "name a task: addition, countdown,"),
        ({}, "name a task"),
        ({"name": "mixture", "parts": [SUMS]}, "at least 2"),
        ({"name": "mixture", "parts": [SUMS, {"name": "mixture"}]}, "name a task"),
        ({"name": "mixture", "parts": [SUMS, REACH], "reward": {"correct": 1}}, "reward is said in each"),
        ({"name": "mixture", "parts": [SUMS, {**REACH, "system_prompt": "x"}]}, "holds for a mixture as a whole"),
        ({"name": "addition", "path": "x"}, "Extra inputs"),
    ],
)
def test_sections_that_cannot_be(keys: dict[str, Any], why: str) -> None:
    assert why in complaint(**keys)


def recipe(tmp_path: Path, task: str) -> GeneratorRecipe:
    file = tmp_path / "recipe.toml"
    file.write_text(f'[run]\nname = "x"\nmodel = "m"\nsteps = 1\n[sampling]\nmax_tokens = 8\n{task}')
    return load(GeneratorRecipe, file, [], {})


def test_a_recipe_names_the_key_and_not_the_choice(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r": unknown key task\.digit$"):
        recipe(tmp_path, '[task]\nname = "addition"\ndigit = 2')
    with pytest.raises(Refused, match=r": task\.digits: Input should be"):
        recipe(tmp_path, '[task]\nname = "addition"\ndigits = 20')
    with pytest.raises(Refused, match=r": unknown key task\.parts\.1\.digits$"):
        recipe(tmp_path, '[task]\nname = "mixture"\n[[task.parts]]\nname = "addition"\n[[task.parts]]\nname = '
               '"countdown"\ndigits = 2')  # fmt: skip
    with pytest.raises(Refused, match=r"task\.weight is a share among the parts"):
        recipe(tmp_path, '[task]\nname = "addition"\nweight = 2.0')
    with pytest.raises(Refused, match=r": task: name a task: addition"):
        recipe(tmp_path, '[task]\nname = "arithmetic"')


def test_a_mixture_in_a_recipe_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    first = recipe(tmp_path, '[task]\nname = "mixture"\n[[task.parts]]\nname = "addition"\n[[task.parts]]\nname = '
                   '"countdown"\nweight = 2')  # fmt: skip
    assert GeneratorRecipe.model_validate(first.model_dump(mode="json")) == first
