"""The generator's own section of a recipe: its engine. Tasks have theirs (`producer/tasks/settings.py`)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from broker.settings import RecipeBase, Section
from producer.tasks.settings import AnyTask, CodeSettings, MixtureSettings


class GeneratorSettings(Section):
    """How one generator samples."""

    count: int = Field(1, ge=1, description="generators that the launcher starts on this machine")
    engine: Literal["vllm", "transformers"] = "vllm"
    slots: int = Field(8, ge=1, description="groups the engine runs at once; as many more may be with the verifiers")
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel: int = Field(1, ge=1)
    gpu_memory_fraction: float = Field(
        0.5, gt=0, le=1, description="of each generator: with `count` of them on one GPU all shares together count"
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="key-value cache; unset: 1 on a CPU, on a GPU what gpu_memory_fraction leaves. vLLM measures that "
        "as it starts, misled by whoever takes or frees memory of that GPU just then: set it where a learner does",
    )
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0: its own choice")
    enforce_eager: bool = False
    engine_metrics: bool = Field(
        True,
        description="have vLLM count queue, key-value cache and latencies, shown beside ours; costs its front end some "
        "microseconds a token",
    )
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


class GeneratorRecipe(RecipeBase):
    """What a generator reads of a recipe."""

    generator: GeneratorSettings = GeneratorSettings()
    task: AnyTask

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.run.deterministic and self.generator.engine == "vllm":
            raise ValueError(
                "run.deterministic needs generator.engine = 'transformers': vLLM's batching is not bit-stable"
            )
        for part in self.task.parts if isinstance(self.task, MixtureSettings) else (self.task,):
            if isinstance(part, CodeSettings) and part.seconds + 1.0 > self.generator.verifier_seconds:
                raise ValueError(
                    f"task.seconds = {part.seconds:g} of a program must be a second below generator.verifier_seconds = "
                    f"{self.generator.verifier_seconds:g}, after which its whole verifier is killed"
                )
        if self.task.weight != 1.0:
            raise ValueError("task.weight is a share among the parts of a mixture, and this task is alone")
        return self
