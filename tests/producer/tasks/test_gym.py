"""reasoning-gym's datasets: each made by name, each judged by its own scorer."""

from __future__ import annotations

import ast

import pytest

from broker.errors import Refused
from tests.producer.tasks.made import made, scored

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

# Numbers, words, grids, tuples in the metadata, and one that has no single answer.
DATASETS = ("chain_sum", "leg_counting", "letter_counting", "arc_agi", "mini_sudoku", "number_sorting")


@pytest.mark.parametrize("dataset", DATASETS)
def test_its_own_answers_count_and_others_do_not(dataset: str) -> None:
    task = made(name="reasoning_gym", dataset=dataset, problems=6, held_out=3)
    assert (len(task.train), len(task.held_out)) == (6, 3)
    assert not {p.prompt for p in task.train} & {p.prompt for p in task.held_out}
    for problem in (*task.train, *task.held_out):
        answer = ast.literal_eval(problem.gold)["answer"]
        verdict = scored(task, problem, f"Hm.\n<answer>{answer}</answer>")
        assert verdict.components == {"correct": 1.0, "score": 1.0, "formatted": 1.0}, dataset
        assert scored(task, problem, f"<answer>{answer}</answer><answer>other</answer>").reward == 0.0
        assert scored(task, problem, str(answer)).components["formatted"] == 0.0
        assert scored(task, problem, "<answer>certainly not this</answer>").components["correct"] == 0.0


def test_options_are_the_dataset_s_own_and_strange_ones_are_refused() -> None:
    task = made(
        name="reasoning_gym", dataset="chain_sum", problems=5, held_out=0, options={"min_terms": 2, "max_terms": 2}
    )
    assert all(str(problem.prompt).count("+") + str(problem.prompt).count(" - ") >= 1 for problem in task.train)
    assert task == made(
        name="reasoning_gym", dataset="chain_sum", problems=5, held_out=0, options={"min_terms": 2, "max_terms": 2}
    )
    with pytest.raises(Refused, match="cannot make nothing"):
        made(name="reasoning_gym", dataset="nothing")
    with pytest.raises(Refused, match="cannot make chain_sum"):
        made(name="reasoning_gym", dataset="chain_sum", options={"speed": 3})


def test_examples_are_turns_before_every_problem_with_their_own_answers() -> None:
    task = made(name="reasoning_gym", dataset="chain_sum", problems=6, held_out=3, examples=2)
    turns = task.train[0].messages[:-1]
    assert [role for role, _ in turns] == ["user", "assistant"] * 2
    for problem in (*task.train, *task.held_out):
        assert problem.messages[:-1] == turns
        assert problem.messages[-1] not in turns
    assert all(
        eval(q.split(": ")[1].split(" =")[0]) == int(a[8:-9])
        for (_, q), (_, a) in zip(turns[::2], turns[1::2], strict=True)
    )
