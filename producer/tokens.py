"""From problems to token ids and back: the one place where the generator's text becomes numbers.

Invariant: the same tokenizer files and settings give the same ids everywhere; they are never written or changed here.
Refuses to know rewards and the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from broker.errors import Refused
from broker.schema import Ints
from producer.tasks.base import Problem
from producer.tasks.settings import TaskSettings


class Tokens:
    """A model directory's tokenizer, and how `[task]` wants its prompts wrapped."""

    def __init__(self, folder: Path, settings: TaskSettings, trust_remote_code: bool = False) -> None:
        """Raises `Refused` if `folder` holds no tokenizer that can be loaded."""
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise Refused(f"cannot load a tokenizer from {folder} ({cause})") from None
        self._system = settings.system_prompt
        kind = type(self._tokenizer)
        # One that decodes as all fast ones do is asked directly: transformers looks at each id before it does the same.
        usual = issubclass(kind, PreTrainedTokenizerFast) and kind._decode is PreTrainedTokenizerFast._decode
        self._backend: Any = self._tokenizer.backend_tokenizer if usual else None
        self._chat = settings.chat_template and bool(self._tokenizer.chat_template)

    @property
    def chat(self) -> bool:
        """Whether prompts go through the model's chat template; without one they are plain text."""
        return self._chat

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion, as far as the tokenizer knows."""
        eos = self._tokenizer.eos_token_id
        return () if eos is None else (int(eos),)

    def prompt_ids(self, problem: Problem) -> Ints:
        """Token ids (P,) int32 of the wrapped prompt. Raises `Refused` where the chat template cannot take it.

        `system_prompt` unset leaves the system turn to the chat template, which may have a default one; an empty string
        asks for an empty turn.
        """
        messages = problem.messages if self._system is None else (("system", self._system), *problem.messages)
        if not self._chat:
            text = "\n\n".join(content for _, content in messages if content)
            return np.asarray(self._tokenizer(text)["input_ids"], np.int32)
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            ids = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise Refused(
                f"the model's chat template refuses the prompt ({error})",
                "unset task.system_prompt or task.chat_template",
            ) from None
        return np.asarray(ids, np.int32)

    def decode(self, tokens: Ints) -> str:
        """The text of a completion (T,), without special tokens."""
        if self._backend is not None:
            return str(self._backend.decode(tokens.tolist(), skip_special_tokens=True))
        text: str = self._tokenizer.decode(
            tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def shown(self, prompt: Ints) -> str:
        """The text of a prompt (P,) as the model is given it, with what marks its turns."""
        if self._backend is not None:
            return str(self._backend.decode(prompt.tolist(), skip_special_tokens=False))
        text: str = self._tokenizer.decode(prompt.tolist(), clean_up_tokenization_spaces=False)
        return text
