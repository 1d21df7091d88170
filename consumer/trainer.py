"""One optimizer step from a batch of groups: advantage, packing, loss, gradient, update, and figures about it.

Invariant: the same groups in the same order on the same weights give the same weights, bit for bit on a CPU.
Refuses to know where groups come from and where weights go.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from broker.schema import RolloutGroup
from consumer.figures import Figures, StepStats, step_stats
from consumer.guard import CollapseGuard
from consumer.model import PolicyModel
from consumer.objective.loss import token_terms
from consumer.objective.tokens import Tokens
from consumer.optimizer import make_optimizer
from consumer.pack import MicroBatch, pack
from consumer.plan import Plan, plan
from consumer.settings import LearnerRecipe
from consumer.sheet import Sheet


class Trainer:
    """The model and its optimizer; `reference` is the frozen model a KL is taken to, where the objective has one."""

    def __init__(self, model: PolicyModel, recipe: LearnerRecipe, reference: PolicyModel | None = None) -> None:
        self.model, self.recipe, self.reference = model, recipe, reference
        self.updates = 0
        self.guard = CollapseGuard(recipe.learner)
        self.optimizer = make_optimizer(model.parameters, recipe.learner)

    @property
    def learning_rate(self) -> float:
        """Of the next update: linear warm-up over `warmup_steps` updates, then constant."""
        settings = self.recipe.learner
        return settings.learning_rate * min(1.0, (self.updates + 1) / max(1, settings.warmup_steps))

    def train(self, groups: Sequence[RolloutGroup], policy_version: int) -> StepStats:
        """One pipeline step: `minibatches_per_batch` updates over disjoint parts of `groups`.

        With more than one, π at the start of the batch is computed once, before the first of them; with one it is
        sg(π) of the same forward pass, unless the objective has to look at the whole batch first.
        """
        started = time.perf_counter()
        settings, of = self.recipe.learner, self.recipe.objective
        sheet, minibatches = Sheet.of(groups), min(settings.minibatches_per_batch, len(groups))
        packed = self._packed(groups, sheet, minibatches)
        anchor = self._whole(self.model, sheet, packed) if minibatches > 1 or of.needs_whole_batch else None
        reference = self._whole(self.reference, sheet, packed) if self.reference is not None else None
        fixed = plan(
            sheet,
            of,
            version=policy_version,
            limit=self.recipe.sampling.max_tokens,
            minibatches=minibatches,
            anchor=anchor,
            reference=reference,
        )
        figures, losses, norms = Figures(len(sheet)), list[float](), list[float]()
        for number, micro_batches in enumerate(packed):
            losses.append(
                sum(self._backward(m, number, sheet, fixed, anchor, reference, figures) for m in micro_batches)
            )
            rate = self.learning_rate
            norms.append(self._update())
        stats = step_stats(
            sheet,
            figures,
            advantages=fixed.advantages,
            staleness=fixed.staleness,
            losses=losses,
            norms=norms,
            rate=rate,
            padded=sum(m.padded_tokens for micro_batches in packed for m in micro_batches),
            seconds=time.perf_counter() - started,
        )
        self.guard.look(stats)
        return stats

    def _packed(self, groups: Sequence[RolloutGroup], sheet: Sheet, minibatches: int) -> list[list[MicroBatch]]:
        """Micro-batches of each minibatch: group i is in minibatch i mod m."""
        settings, starts = self.recipe.learner, iter(sheet.starts.tolist())
        first = [[next(starts) for _ in range(size)] for size in sheet.sizes]
        return [
            pack(
                groups[n::minibatches],
                list(chain.from_iterable(first[n::minibatches])),
                settings.tokens_per_micro_batch,
                self.model.layout,
            )
            for n in range(minibatches)
        ]

    def _backward(
        self,
        batch: MicroBatch,
        number: int,
        sheet: Sheet,
        fixed: Plan,
        anchor: Tensor | None,
        reference: Tensor | None,
        figures: Figures,
    ) -> float:
        """Adds the gradient of one micro-batch of minibatch `number`; its part of the loss."""
        of, rows = self.recipe.objective, batch.tokens
        batch = batch.to(self.model.device)
        logprobs, entropy = self.model.logprobs(batch, self.recipe.sampling.temperature, entropy=of.entropy_bonus > 0)

        def of_these(values: Tensor, like: Tensor | None = None) -> Tensor:
            return values[rows].to(self.model.device, None if like is None else like.dtype)

        start = logprobs.detach() if anchor is None else of_these(anchor, logprobs)
        tokens = Tokens(
            logprobs=logprobs,
            anchor=start,
            behaviour=of_these(sheet.behaviour, logprobs),
            advantages=of_these(fixed.advantages, logprobs),
            staleness=of_these(fixed.staleness),
            sequences=of_these(sheet.sequences),
            mask=of_these(fixed.mask),
            dropped=of_these(fixed.dropped),
        )
        terms = token_terms(
            tokens,
            of_these(fixed.coefficients, logprobs),
            of,
            progress=number / len(fixed.divisors),
            divisor=fixed.divisors[number],
            reference=None if reference is None else of_these(reference, logprobs),
            entropy=entropy if of.entropy_bonus else None,
        )
        loss = terms.loss.sum()
        loss.backward()
        figures.put(
            rows,
            logprobs=logprobs,
            anchor=start,
            entropy=entropy,
            clipped=terms.clipped,
            truncated=terms.truncated,
            masked=terms.masked,
            **({} if reference is None else {"reference": reference[rows]}),
        )
        return float(loss.detach())

    def _whole(self, model: PolicyModel, sheet: Sheet, packed: Sequence[Sequence[MicroBatch]]) -> Tensor:
        """Log-probs (N,) of all tokens of the batch under `model` as it is now."""
        out: Tensor | None = None
        for batch in (m for micro_batches in packed for m in micro_batches):
            with torch.no_grad():
                found = model.logprobs(batch.to(model.device), self.recipe.sampling.temperature)[0].cpu()
            out = torch.zeros(len(sheet), dtype=found.dtype) if out is None else out
            out[batch.tokens] = found
        return torch.zeros(len(sheet)) if out is None else out

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
