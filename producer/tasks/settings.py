"""The `[task]` section of a recipe, one class for each task.

Invariant: a task has the keys of its own class and no others; `[task] name` says which class. Refuses to know what is
done with them, and imports nothing that a task needs to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from broker.loading import CHOICE
from broker.settings import Section

AnswerFormat = Literal["boxed", "tags", "hashes", "last_number"]
VerifierName = Literal["numeric", "symbolic", "choice", "exact"]
HELD_OUT = Field(25, ge=0, description="problems for evaluation, never trained on")
PROBLEMS = Field(1000, ge=1, description="problems to train on that are made up")
EXAMPLES = Field(
    0, ge=0, le=16, description="solved problems before each problem, as earlier turns of the conversation"
)
FORMATS = "how a completion may declare its answer; the first is the one it is asked for"


class TaskSettings(Section):
    """What every task has."""

    name: str
    held_out: int = HELD_OUT
    reward: dict[str, float] = Field(
        {}, description="weights of the components that make up the reward; none: what the task's verifier says"
    )
    drop_long_prompts: bool = Field(
        False, description="leave out, and count, problems whose prompt exceeds sampling.max_prompt_tokens"
    )
    system_prompt: str | None = None
    chat_template: bool = True
    weight: float = Field(1.0, gt=0, description="of a mixture's part: its share of the tickets")


class AdditionSettings(TaskSettings):
    """Sums of two numbers."""

    name: Literal["addition"]
    digits: int = Field(1, ge=1, le=9, description="digits of each summand")


class CountdownSettings(TaskSettings):
    """Reach a target by arithmetic on given numbers."""

    name: Literal["countdown"]
    numbers: tuple[int, int] = Field((3, 4), description="how many numbers a problem has, least and most")
    largest: int = Field(50, ge=4, description="of the given numbers")
    target: int = Field(100, ge=4, description="the largest target")
    problems: int = PROBLEMS
    examples: int = EXAMPLES

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 2 <= self.numbers[0] <= self.numbers[1] <= 6:
            raise ValueError("numbers are the least and the most, between 2 and 6")
        return self


class Gsm8kSettings(TaskSettings):
    """Grade-school word problems."""

    name: Literal["gsm8k"]
    path: Path | None = Field(None, description="directory with train.jsonl and test.jsonl; unset: from the hub")
    answer: tuple[AnswerFormat, ...] = Field(("hashes", "boxed"), min_length=1, description=FORMATS)


class RowsSettings(TaskSettings):
    """Problems that are rows of a file."""

    path: Path | None = Field(None, description="JSON lines; or a directory with train.jsonl and test.jsonl")
    held_out_path: Path | None = Field(None, description="JSON lines to hold out; unset: rows of `path` are set aside")
    hub: str | None = Field(None, description="dataset of the hub, where there is no path (needs `datasets`)")
    hub_splits: tuple[str, str] = Field(("train", "test"), description="its splits to train on and to hold out")
    level_field: str | None = Field(None, description="field by whose value evaluations are grouped")
    only: dict[str, tuple[str, ...]] = Field({}, description="field → values: leave out rows that have another")

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        return self._from_one_place()

    def _from_one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path or hub")
        if self.hub is not None and self.held_out_path is not None:
            raise ValueError("held_out_path has no effect with hub: name the split to hold out in hub_splits")
        return self


class MathSettings(RowsSettings):
    """Problems whose answers are LaTeX, as in MATH."""

    name: Literal["math"]
    problem_field: str = "problem"
    answer_field: str = Field("answer", description="field of the answer; where it is absent: the box in `solution`")
    level_field: str | None = "level"
    answer: tuple[AnswerFormat, ...] = Field(("boxed",), min_length=1, description=FORMATS)

    @model_validator(mode="after")
    def _not_gameable(self) -> Self:
        if "last_number" in self.answer:
            raise ValueError("answer = 'last_number' reads a number and can be gamed; mathematics needs 'boxed'")
        return self


class JsonlSettings(RowsSettings):
    """Bring your own rows."""

    name: Literal["jsonl"]
    template: str = Field("{question}", description="the prompt; {field} stands for a field of the row")
    answer_field: str = "answer"
    verifier: VerifierName | Annotated[str, Field(pattern=r".\.py:[\w.]+$|^[\w.]+:[\w.]+$")] = Field(
        "exact", description="numeric, symbolic, choice, exact, or a function of yours: file.py:name"
    )
    answer: tuple[AnswerFormat, ...] = Field(("boxed",), min_length=1, description=FORMATS)


class CodeSettings(RowsSettings):
    """Functions that must pass unit tests."""

    name: Literal["code"]
    held_out: int = Field(10, ge=0, description="problems for evaluation, never trained on")
    prompt_field: str = "text"
    tests_field: str = Field("test_list", description="field with a list of tests, each `assert f(1, 2) == 3`")
    shown_tests: int = Field(1, ge=0, description="tests that the prompt shows; the others stay hidden")
    level_field: str | None = "level"
    seconds: float = Field(3.0, gt=0, le=600, description="wall clock of one program, all of its tests together")

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.path is None and self.hub is None and self.held_out_path is None:
            return self  # our own functions
        return self._from_one_place()


class ReasoningGymSettings(TaskSettings):
    """A procedural dataset of reasoning-gym, by its name there."""

    name: Literal["reasoning_gym"]
    dataset: str
    options: dict[str, Any] = Field({}, description="the dataset's own parameters")
    problems: int = PROBLEMS
    examples: int = EXAMPLES


class FileSettings(TaskSettings):
    """A task of the user's own: `file.py:Class`."""

    name: str = Field(pattern=r".\.py:[A-Za-z_]\w*$")
    options: dict[str, Any] = Field({}, description="keyword arguments of the class")


def _kind(data: Any) -> str | None:
    name = data.get("name") if isinstance(data, dict) else getattr(data, "name", None)
    if not isinstance(name, str):
        return None
    return CHOICE + ("file" if ".py:" in name else name)


NAMES = ("addition", "countdown", "gsm8k", "math", "code", "reasoning_gym", "jsonl")
UNKNOWN = f"name a task: {', '.join(NAMES)}, mixture, or a class of yours as file.py:Class"
_BY_NAME = Discriminator(_kind, custom_error_type="unknown_task", custom_error_message=UNKNOWN)

SinglePart = Annotated[
    Annotated[AdditionSettings, Tag(CHOICE + "addition")]
    | Annotated[CountdownSettings, Tag(CHOICE + "countdown")]
    | Annotated[Gsm8kSettings, Tag(CHOICE + "gsm8k")]
    | Annotated[MathSettings, Tag(CHOICE + "math")]
    | Annotated[CodeSettings, Tag(CHOICE + "code")]
    | Annotated[ReasoningGymSettings, Tag(CHOICE + "reasoning_gym")]
    | Annotated[JsonlSettings, Tag(CHOICE + "jsonl")]
    | Annotated[FileSettings, Tag(CHOICE + "file")],
    _BY_NAME,
]


class MixtureSettings(TaskSettings):
    """Several tasks at once, each with its share of the tickets."""

    name: Literal["mixture"]
    parts: tuple[SinglePart, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        for name in ("reward", "held_out"):
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is said in each of a mixture's parts")
        for part in self.parts:
            for name in ("system_prompt", "chat_template", "drop_long_prompts"):
                if getattr(part, name) != TaskSettings.model_fields[name].default:
                    raise ValueError(f"{name} holds for a mixture as a whole, not for a part of it")
        return self


AnyTask = Annotated[
    Annotated[MixtureSettings, Tag(CHOICE + "mixture")] | Annotated[SinglePart, Tag(CHOICE + "one")],
    Discriminator(lambda data: CHOICE + ("mixture" if _kind(data) == CHOICE + "mixture" else "one")),
]
