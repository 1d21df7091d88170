"""One optimizer step from a batch of groups: advantage, packing, loss, gradient, update, and figures about it.

Invariant: the same groups in the same order on the same weights give the same weights, bit for bit on a CPU.
Refuses to know where groups come from and where weights go.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from broker.schema import RolloutGroup
from consumer.guard import CollapseGuard
from consumer.model import PolicyModel
from consumer.objective.decoupled import effective_sample_size, global_token_mean, token_terms
from consumer.objective.surrogate import importance_ratio
from consumer.pack import MicroBatch, completion_tokens, pack
from consumer.settings import LearnerRecipe


@dataclass(frozen=True)
class StepStats:
    """What a step says of itself. Ratios are π/μ, staleness is in versions, times in seconds."""

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    tokens: int
    padded_tokens: int
    entropy: float
    ess: float
    ratio_mean: float
    ratio_max: float
    kl: float
    clip_fraction: float
    truncation_fraction: float
    staleness_mean: float
    staleness_max: int
    staleness_histogram: dict[int, int]
    train_seconds: float


@dataclass
class _Tokens:
    """Per-token figures of a batch, each list of (N,) tensors on the CPU."""

    weight: list[Tensor]
    ratio: list[Tensor]
    log_ratio: list[Tensor]
    clipped: list[Tensor]
    entropy: list[Tensor]
    staleness: list[Tensor]


class Trainer:
    """The model and its optimizer."""

    def __init__(self, model: PolicyModel, recipe: LearnerRecipe) -> None:
        self.model, self.recipe = model, recipe
        settings = recipe.learner
        self.updates = 0
        self.guard = CollapseGuard(settings)
        self.optimizer = torch.optim.AdamW(
            model.parameters,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """Of the next update: linear warm-up over `warmup_steps` updates, then constant."""
        settings = self.recipe.learner
        return settings.learning_rate * min(1.0, (self.updates + 1) / max(1, settings.warmup_steps))

    def train(self, groups: Sequence[RolloutGroup], policy_version: int) -> StepStats:
        """One pipeline step: `minibatches_per_batch` updates over disjoint parts of `groups`.

        With more than one, π_prox is computed once, before the first of them; with one it is sg(π) of the same forward
        pass.
        """
        started = time.perf_counter()
        settings = self.recipe.learner
        seen = _Tokens([], [], [], [], [], [])
        parts = [
            part for i in range(settings.minibatches_per_batch) if (part := groups[i :: settings.minibatches_per_batch])
        ]
        packed = [pack(part, settings.tokens_per_micro_batch, settings.layout) for part in parts]
        proximal = [[self._proximal(m) if len(parts) > 1 else None for m in micro_batches] for micro_batches in packed]
        losses, norms, skipped = [], [], False
        for part, micro_batches, anchors in zip(parts, packed, proximal, strict=True):
            loss = sum(
                self._backward(m, anchor, completion_tokens(part), policy_version, seen)
                for m, anchor in zip(micro_batches, anchors, strict=True)
            )
            rate = self.learning_rate
            norm = self._update()
            losses.append(loss)
            norms.append(norm)
            skipped |= norm != norm or norm in (float("inf"), float("-inf"))
        padded = sum(m.padded_tokens for micro_batches in packed for m in micro_batches)
        seconds = time.perf_counter() - started
        stats = _stats(seen, losses, norms, rate, skipped, padded, self.recipe.objective.truncation, seconds)
        self.guard.look(stats)
        return stats

    def _backward(
        self, batch: MicroBatch, proximal: Tensor | None, denominator: int, version: int, seen: _Tokens
    ) -> float:
        """Adds the gradient of one micro-batch; its part of the loss."""
        batch = batch.to(self.model.device)
        logprobs, entropy = self.model.logprobs(batch, self.recipe.sampling.temperature)
        anchor = logprobs.detach() if proximal is None else proximal
        behaviour, advantages = batch.behaviour_logprobs.to(logprobs.dtype), batch.advantages.to(logprobs.dtype)
        terms = token_terms(logprobs, anchor, behaviour, advantages, self.recipe.objective)
        loss = global_token_mean(terms.loss, denominator)
        loss.backward()
        seen.weight.append(importance_ratio(anchor, behaviour).cpu())
        seen.ratio.append(importance_ratio(logprobs.detach(), behaviour).cpu())
        seen.log_ratio.append((logprobs.detach() - behaviour).cpu())
        seen.clipped.append(terms.clipped.cpu())
        seen.entropy.append(entropy.cpu())
        seen.staleness.append((version - batch.versions).cpu())
        return float(loss.detach())

    def _proximal(self, batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            return self.model.logprobs(batch.to(self.model.device), self.recipe.sampling.temperature)[0]

    def _update(self) -> float:
        """Clip and apply the gradient, or throw it away if it is not finite. Returns its norm before clipping."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters, self.recipe.learner.max_grad_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        if norm == norm and norm not in (float("inf"), float("-inf")):
            self.optimizer.step()
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def snapshot(self) -> dict[str, Tensor]:
        """The weights to publish, copied."""
        return self.model.snapshot()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a restart needs, as flat named tensors."""
        state: dict[str, Tensor] = {"updates": torch.tensor(self.updates)}
        for name, weight in self.model.snapshot(torch.float32).items():
            state[f"model.{name}"] = weight
        for index, slots in self.optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                state[f"optimizer.{index}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The reverse of `state_dict`, for the same model and recipe. Raises `KeyError` for another model's."""
        self.updates = int(state["updates"])
        own = dict(self.model.module.named_parameters()) | dict(self.model.module.named_buffers())
        slots: dict[int, dict[str, Any]] = {}
        with torch.no_grad():
            for key, value in state.items():
                kind, _, rest = key.partition(".")
                if kind == "model":
                    own[rest].copy_(value)
                elif kind == "optimizer":
                    index, _, name = rest.partition(".")
                    slots.setdefault(int(index), {})[name] = value
        document = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": slots, "param_groups": document["param_groups"]})


def _stats(
    seen: _Tokens,
    losses: list[float],
    norms: list[float],
    rate: float,
    skipped: bool,
    padded: int,
    cap: float,
    seconds: float,
) -> StepStats:
    weight, ratio, log_ratio = torch.cat(seen.weight), torch.cat(seen.ratio), torch.cat(seen.log_ratio)
    staleness = torch.cat(seen.staleness)
    ages, counts = torch.unique(staleness, return_counts=True)
    return StepStats(
        loss=sum(losses) / len(losses),
        grad_norm=max(norms),
        learning_rate=rate,
        skipped=skipped,
        tokens=len(ratio),
        padded_tokens=padded,
        entropy=float(torch.cat(seen.entropy).mean()),
        ess=effective_sample_size(weight),
        ratio_mean=float(ratio.mean()),
        ratio_max=float(ratio.max()),
        kl=float((ratio - 1 - log_ratio).mean()),  # k3 of KL(μ‖π) over tokens of μ: Schulman 2020
        clip_fraction=float(torch.cat(seen.clipped).float().mean()),
        truncation_fraction=float((weight > cap).float().mean()),
        staleness_mean=float(staleness.float().mean()),
        staleness_max=int(staleness.max()),
        staleness_histogram={int(a): int(c) for a, c in zip(ages, counts, strict=True)},
        train_seconds=seconds,
    )
