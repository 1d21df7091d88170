"""Prompts become the ids that the model's chat template asks for, and completions become text again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from broker.errors import Refused
from deploy.prepare import prepare
from producer.tasks import Problem
from producer.tasks.settings import AdditionSettings
from producer.tokens import Tokens

SUM = Problem("What is 3 + 4?", "7")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("random:llama-tiny", tmp_path_factory.mktemp("models"))


def tokens(folder: Path, system_prompt: str | None = None, chat_template: bool = True) -> Tokens:
    return Tokens(folder, AdditionSettings(name="addition", system_prompt=system_prompt, chat_template=chat_template))


def shown(tokens: Tokens, problem: Problem = SUM) -> str:
    ids = tokens.prompt_ids(problem)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    return str(tokens._tokenizer.decode(ids.tolist()))


def test_a_prompt_is_wrapped_as_a_turn(folder: Path) -> None:
    assert shown(tokens(folder)) == "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"


def test_a_system_prompt_comes_first_and_may_be_empty(folder: Path) -> None:
    assert shown(tokens(folder, "Be brief.")).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert shown(tokens(folder, "")).startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")


def test_a_conversation_keeps_its_turns(folder: Path) -> None:
    problem = Problem((("user", "Hi"), ("assistant", "Hello"), ("user", "3 + 4?")), "7")
    assert shown(tokens(folder), problem) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\n3 + 4?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("switch", ["setting", "model"])
def test_without_a_template_the_prompt_is_plain_text(folder: Path, tmp_path: Path, switch: str) -> None:
    if switch == "model":
        folder = Path(shutil.copytree(folder, tmp_path / "model"))
        (folder / "chat_template.jinja").unlink()
    plain = tokens(folder, "Be brief.", chat_template=switch == "model")
    assert not plain.chat
    assert shown(plain) == "Be brief.\n\nWhat is 3 + 4?"


def test_a_template_that_refuses_is_one_line(folder: Path) -> None:
    strict = tokens(folder, "Be brief.")
    strict._tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(Refused, match=r"refuses the prompt \(System role not supported\): unset task\.system_prompt"):
        strict.prompt_ids(SUM)


def test_a_completion_is_text_without_special_tokens(folder: Path) -> None:
    kind = tokens(folder)
    (stop,) = kind.stop_ids
    ids = np.array([*kind._tokenizer(" 3 + 4 = 7 .")["input_ids"], stop], np.int32)
    assert kind.decode(ids) == " 3 + 4 = 7 ."
    assert kind.decode(ids[:0]) == ""


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot load a tokenizer from"):
        tokens(tmp_path)
