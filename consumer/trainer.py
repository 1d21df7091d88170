"""One optimizer step from a batch of groups: advantage, packing, loss, gradient, update, and figures about it.

Invariant: the same groups in the same order on the same weights give the same weights, bit for bit on a CPU.
Refuses to know where groups come from and where weights go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from broker.schema import RolloutGroup
from consumer.effort import Laps
from consumer.figures import Figures, StepStats, step_stats
from consumer.guard import CollapseGuard
from consumer.model import PolicyModel, Scorer
from consumer.objective.loss import token_terms
from consumer.objective.tokens import Tokens
from consumer.optimizer import set_rate, update
from consumer.pack import MicroBatch, assign, pack
from consumer.plan import Plan, plan
from consumer.ranks import ALONE, Ranks
from consumer.restorable import Restorable
from consumer.settings import LearnerRecipe
from consumer.sharding import whole
from consumer.sheet import Sheet
from consumer.uses import Uses


class Trainer(Restorable):
    """The model and its optimizer; `reference` is the frozen model a KL is taken to, where the objective has one."""

    def __init__(
        self,
        model: PolicyModel,
        recipe: LearnerRecipe,
        reference: Scorer | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(model, recipe.learner, ranks)
        self.recipe, self.reference = recipe, reference
        self.guard = CollapseGuard(recipe.learner)
        self.uses: Uses | None = None  # of the last step, where somebody wants to know

    @property
    def learning_rate(self) -> float:
        """Of the next update: linear warm-up over `warmup_steps` updates, then constant."""
        settings = self.recipe.learner
        return settings.learning_rate * min(1.0, (self.updates + 1) / max(1, settings.warmup_steps))

    def train(self, groups: Sequence[RolloutGroup], policy_version: int) -> StepStats:
        """One pipeline step: `minibatches_per_batch` updates over disjoint parts of `groups`.

        With more than one, π at the start of the batch is computed once, before the first of them, where the objective
        asks for it; with one it is sg(π) of the same forward pass, unless all of the batch has to be looked at first.
        """
        laps, settings, of = Laps(), self.recipe.learner, self.recipe.objective
        sheet, minibatches = Sheet.of(groups), min(settings.minibatches_per_batch, len(groups))
        packed = self._packed(groups, sheet, minibatches)
        laps.lap("pack")
        looks_back = of.needs_whole_batch or (minibatches > 1 and of.needs_anchor)
        anchor = self._whole(self.model, sheet, packed) if looks_back else None
        reference = self._whole(self.reference, sheet, packed) if self.reference is not None else None
        laps.lap("forward_backward")
        fixed = plan(
            sheet,
            of,
            version=policy_version,
            limit=self.recipe.sampling.max_tokens,
            minibatches=minibatches,
            anchor=anchor,
            reference=reference,
        )
        laps.lap("pack")
        figures, losses, norms = Figures(len(sheet)), torch.zeros(minibatches, dtype=torch.float64), list[float]()
        for number, micro_batches in enumerate(packed):
            for micro_batch, counts in self._ours(micro_batches):
                loss = self._backward(micro_batch, number, sheet, fixed, anchor, reference, figures if counts else None)
                losses[number] += loss
            laps.lap("forward_backward")
            rate = self.learning_rate
            norms.append(self._update())
            laps.lap("optimizer")
        self.ranks.total(figures.table)
        stats = step_stats(
            sheet,
            figures,
            advantages=fixed.advantages,
            staleness=fixed.staleness,
            losses=self.ranks.total(losses).tolist(),
            norms=norms,
            rate=rate,
            padded=sum(m.padded_tokens for micro_batches in packed for m in micro_batches),
            with_reference=reference is not None,
        )
        self.uses = Uses.of(sheet, figures, fixed) if self.recipe.broker.audit_entries and self.ranks.leads else None
        self.guard.look(stats)
        laps.lap("figures")
        return self._with_effort(stats, laps, packed, forward_passes=(anchor is not None) + (reference is not None))

    def _with_effort(
        self, stats: StepStats, laps: Laps, packed: Sequence[Sequence[MicroBatch]], *, forward_passes: int
    ) -> StepStats:
        """A reference is counted as a model of the same size; `forward_passes` are those that have no backward pass."""
        tokens = sum(micro_batch.real_tokens for micro_batches in packed for micro_batch in micro_batches)
        flops = tokens * (self.model.flops.training + forward_passes * self.model.flops.forward)
        peak = None if self.model.peak_flops is None else self.ranks.world * self.model.peak_flops
        mfu = None if peak is None else flops / (peak * laps.total)
        effort = {"train_seconds": laps.total, "phase_seconds": laps.seconds, "flops": flops}
        return replace(stats, **effort, mfu=mfu, peak_flops=peak)  # type: ignore[arg-type]

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
        figures: Figures | None,
    ) -> float:
        """Adds the gradient of one micro-batch of minibatch `number`; its part of the loss.

        Without `figures` the micro-batch is another rank's, computed to keep it company: it counts for nothing.
        """
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
        loss = terms.loss.sum() if figures is not None else terms.loss.sum() * 0.0
        loss.backward()
        if figures is None:
            return 0.0
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

    def _whole(self, model: Scorer, sheet: Sheet, packed: Sequence[Sequence[MicroBatch]]) -> Tensor:
        """Log-probs (N,) of all tokens of the batch under `model` as it is now."""
        out: Tensor | None = None
        for batch, counts in self._ours([m for micro_batches in packed for m in micro_batches]):
            with torch.no_grad():
                found = model.logprobs(batch.to(model.device), self.recipe.sampling.temperature)[0].cpu()
            out = torch.zeros(len(sheet), dtype=found.dtype) if out is None else out
            if counts:
                out[batch.tokens] = found
        return torch.zeros(len(sheet)) if out is None else self.ranks.total(out)

    def _ours(self, micro_batches: Sequence[MicroBatch]) -> list[tuple[MicroBatch, bool]]:
        """Our share of the micro-batches, by cost. Every rank has as many, since their collectives meet in each: a rank
        with fewer goes along with one that counts for nothing (False)."""
        shares = assign(micro_batches, self.ranks.world)
        ours = [(micro_batches[i], True) for i in shares[self.ranks.rank]]
        idle = max(len(share) for share in shares) - len(ours)
        smallest = min(micro_batches, key=lambda m: m.cost)
        return ours + [(smallest, False)] * idle

    def _update(self) -> float:
        """Clip and apply the gradient, or throw it away if it is not finite. Returns its norm before clipping."""
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.model.parameters, self.recipe.learner.max_grad_norm)))
        set_rate(self.optimizer, self.learning_rate)
        if norm == norm and norm not in (float("inf"), float("-inf")):
            update(self.optimizer)
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm
