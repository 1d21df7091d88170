"""The learner's own section of a recipe: optimisation, flow control, evaluation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from broker.settings import RecipeBase, Section
from consumer.choice import Course
from consumer.objective.settings import ObjectiveSettings

MOST_BF16_BETA = 0.98  # bfloat16 loses changes below 0.4 %; at 0.98 those are of squares within 20 % of their mean


class LearnerSettings(Section):
    """How the learner steps, publishes and survives."""

    groups_per_step: int = Field(8, ge=1, description="groups in a batch, B")
    order: Literal["ready", "strict"] = "ready"
    pipeline_depth: int = Field(
        2, ge=0, description="batches in play beyond the one being trained; sets the mean staleness"
    )
    publish_every: int = Field(1, ge=1, description="optimizer steps per policy version")
    optimizer: Literal["adamw", "adamw_bf16", "adamw_8bit"] = Field(
        "adamw", description="AdamW with its two moments in fp32, in bfloat16, or in 8 bits (needs torchao)"
    )
    learning_rate: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    lora_rank: int = Field(
        0, ge=0, description="train adapters of this rank and leave the model as it is; 0: train all"
    )
    lora_alpha: int = Field(32, gt=0, description="what an adapter adds is multiplied by lora_alpha/lora_rank")
    lora_targets: tuple[str, ...] = Field((), description="names of the layers with adapters; none: all linear ones")
    lora_publish: Literal["merged", "adapter"] = Field(
        "merged", description="what a policy version holds: a whole model, or the adapter, merged by the generators"
    )
    max_grad_norm: float = Field(1.0, gt=0)
    minibatches_per_batch: int = Field(1, ge=1)
    tokens_per_micro_batch: int = Field(4096, ge=1, description="tokens of one forward pass, padding included")
    layout: Literal["auto", "packed", "shared_prompt", "padded"] = Field(
        "auto",
        description="sequences one after another in a row; a prompt once for its completions; or a padded row each, "
        "which any model can be given; auto: whichever of the first two costs less",
    )
    logit_chunk: int = Field(
        0, ge=0, description="tokens whose logits exist at once; 0: as many as fill 128 MiB, 512 on CUDA"
    )
    compile: bool = Field(
        False, description="let torch compile the model's layers and its head; needs a C++ compiler on a CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    autocast: Literal["none", "bfloat16", "auto"] = Field("auto", description="auto: bfloat16 on CUDA, none on CPU")
    tf32: bool = Field(
        True,
        description="beside autocast on CUDA: the head multiplies in TF32 and sums in fp32, several times as fast and "
        "far within what bfloat16 costs the body; false: all in fp32",
    )
    peak_flops: float | None = Field(
        None,
        gt=0,
        description="FLOP/s of the device, for MFU; none: as its maker says, where that is known",
    )
    gradient_checkpointing: bool = False
    ranks: int = Field(1, ge=1, description="processes that train together on a machine, each on a GPU of its own")
    nodes: int = Field(
        1,
        ge=1,
        description="machines with `ranks` processes each, which share run.directory; each is told by NODE_RANK, "
        "MASTER_ADDR and MASTER_PORT which it is and where the first one is",
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0: torch's own choice")
    checkpoint_every: int = Field(10, ge=1, description="optimizer steps between durable checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that stay")
    keep_every: int = Field(
        0, ge=0, description="optimizer steps: the first checkpoint past each multiple stays as well; 0: none does"
    )
    resume: Literal["auto"] | int = Field(
        "auto",
        description="the newest checkpoint; or the step of an older one, to go back to: newer ones are set aside",
    )
    max_degenerate_in_a_row: int = Field(200, ge=1)
    stop_when_solved: bool = Field(
        True, description="end a run whose groups are all degenerate, saying `solved` or `no signal`"
    )
    guard_steps: int = Field(
        10,
        ge=0,
        description="steps in a row out of a guard_… range that end the run at its last good checkpoint; 0: off",
    )
    guard_min_ess: float = Field(
        0.01, ge=0, le=1, description="effective sample size (a fraction) of the weights π_prox/μ: at least this"
    )
    guard_max_grad_norm: float = Field(1000.0, gt=0, description="norm of the gradient before clipping: at most this")
    curriculum: Literal["uniform", "skip", "target"] = Field(
        "uniform",
        description="each problem once an epoch; or not those that all completions or none solve, for a while; or "
        "mostly those that about half of the completions solve",
    )
    curriculum_longest_rest: int = Field(8, ge=1, description="epochs for which `skip` leaves a problem out, at most")
    curriculum_explore: float = Field(
        0.1, ge=0, le=1, description="share of `target`'s tickets that are drawn as `uniform` draws them"
    )
    eval_problems: int = Field(0, ge=0, description="held-out problems per evaluation; 0: none")
    eval_every: int = Field(0, ge=0, description="policy versions between evaluations; 0: only at start and end")

    @property
    def course(self) -> Course:
        """How problems are chosen."""
        return Course(self.curriculum, self.curriculum_longest_rest, self.curriculum_explore)

    @property
    def most_unsaved_steps(self) -> int:
        """Steps without a durable checkpoint, at most: two checkpoints' worth, and the collapse guard's hesitation."""
        return 2 * self.checkpoint_every + self.guard_steps

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.optimizer == "adamw_bf16" and self.betas[1] > MOST_BF16_BETA:
            raise ValueError(
                f"betas = {list(self.betas)}: a second moment in bfloat16 cannot follow changes this small and would "
                f"stand still; use optimizer = 'adamw' or 'adamw_8bit', or a second beta of at most {MOST_BF16_BETA}"
            )
        return self

    @model_validator(mode="after")
    def _flows(self) -> Self:
        if self.publish_every > self.pipeline_depth + 1:
            raise ValueError(
                f"publish_every = {self.publish_every} needs pipeline_depth >= {self.publish_every - 1}: credit is "
                "freed by publication, so the learner would wait for itself"
            )
        return self


class LearnerRecipe(RecipeBase):
    """What a learner reads of a recipe."""

    learner: LearnerSettings = LearnerSettings()
    objective: ObjectiveSettings = ObjectiveSettings()

    @property
    def capacity(self) -> int:
        """Tickets in play at most: the one number of flow control."""
        return (self.learner.pipeline_depth + 1) * self.learner.groups_per_step

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        depth, bound = self.learner.pipeline_depth, self.run.max_staleness
        if depth > bound:
            raise ValueError(f"learner.pipeline_depth = {depth} is above run.max_staleness = {bound}; lower the depth")
        if bound == 0 and self.learner.publish_every != 1:
            raise ValueError("run.max_staleness = 0 is synchronous and needs learner.publish_every = 1")
        if self.objective.overlong_buffer > self.sampling.max_tokens:
            raise ValueError(
                f"objective.overlong_buffer = {self.objective.overlong_buffer} is above sampling.max_tokens = "
                f"{self.sampling.max_tokens}: the penalty would begin before the first token"
            )
        return self
