"""The generator's own sections of a recipe: its engine and its task."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from broker.settings import RecipeBase, Section


class GeneratorSettings(Section):
    """How one generator samples."""

    count: int = Field(1, ge=1, description="generators that the launcher starts on this machine")
    engine: Literal["vllm", "transformers"] = "vllm"
    slots: int = Field(8, ge=1, description="groups that the engine runs at once; never more tickets are claimed")
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel: int = Field(1, ge=1)
    gpu_memory_fraction: float = Field(0.5, gt=0, le=1)
    kv_cache_gib: float = Field(1.0, gt=0, description="key-value cache on CPU")
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0: its own choice")
    enforce_eager: bool = False
    conservative_spans: bool = Field(
        False, description="below vLLM 0.32: refresh in flight and stamp the whole completion with its oldest version"
    )
    sample_seconds: float = Field(
        3600.0, gt=0, description="an engine that has not answered a group by then is taken for dead and started again"
    )
    drain_seconds: float = Field(
        8.0, ge=0, description="how long SIGTERM waits for groups in flight before handing them back"
    )
    verifier_workers: int = Field(1, ge=1)
    verifier_seconds: float = Field(5.0, gt=0, description="wall-clock limit of one verification")


class TaskSettings(Section):
    """Which problems, and how they are asked."""

    name: Literal["addition", "gsm8k"]
    path: Path | None = Field(
        None, description="directory with train.jsonl and test.jsonl; unset: from the hub (gsm8k)"
    )
    digits: int = Field(1, ge=1, le=9, description="addition: digits of each summand")
    held_out: int = Field(25, ge=1, description="problems kept out of training (addition), or taken of the test split")
    system_prompt: str | None = None
    chat_template: bool = True


class GeneratorRecipe(RecipeBase):
    """What a generator reads of a recipe."""

    generator: GeneratorSettings = GeneratorSettings()
    task: TaskSettings

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.run.deterministic and self.generator.engine == "vllm":
            raise ValueError(
                "run.deterministic needs generator.engine = 'transformers': vLLM's batching is not bit-stable"
            )
        return self
