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
from consumer.blocks import Parcel, parcels_of
from consumer.columns import Columns
from consumer.effort import Laps
from consumer.figures import Figures, StepStats, step_stats
from consumer.guard import CollapseGuard
from consumer.model import PolicyModel, Scorer
from consumer.objective.loss import token_terms
from consumer.optimizer import set_rate, update
from consumer.pack import assign, micro_batch
from consumer.plan import plan
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
        cut = self._cut(groups, sheet, minibatches)
        laps.lap("pack")
        looks_back = of.needs_whole_batch or (minibatches > 1 and of.needs_anchor)
        anchor = self._whole(self.model, sheet, cut) if looks_back else None
        reference = self._whole(self.reference, sheet, cut) if self.reference is not None else None
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
        columns = Columns.of(sheet, fixed, anchor, reference, self.model.device)
        figures, losses, norms = Figures(len(sheet), self.model.device), list[float](), list[float]()
        laps.lap("pack")
        for number, parcels in enumerate(cut):
            divisor, progress = fixed.divisors[number], number / minibatches
            parts = [
                self._backward(parcel, columns, divisor, progress, figures if counts else None)
                for parcel, counts in self._ours(parcels)
            ]
            losses.append(summed(parts))  # the first word from the device since the minibatch began
            laps.lap("forward_backward")
            rate = self.learning_rate
            norms.append(self._update())
            laps.lap("optimizer")
        figures.come_home()
        self.ranks.total(figures.table)
        stats = step_stats(
            sheet,
            figures,
            advantages=fixed.advantages,
            staleness=fixed.staleness,
            losses=self.ranks.total(torch.tensor(losses, dtype=torch.float64)).tolist(),
            norms=norms,
            rate=rate,
            padded=sum(parcel.padded_tokens for parcels in cut for parcel in parcels),
            with_reference=reference is not None,
        )
        self.uses = Uses.of(sheet, figures, fixed) if self.recipe.broker.audit_entries and self.ranks.leads else None
        self.guard.look(stats)
        laps.lap("figures")
        return self._with_effort(stats, laps, cut, forward_passes=(anchor is not None) + (reference is not None))

    def _with_effort(
        self, stats: StepStats, laps: Laps, cut: Sequence[Sequence[Parcel]], *, forward_passes: int
    ) -> StepStats:
        """A reference is counted as a model of the same size; `forward_passes` are those that have no backward pass."""
        tokens = sum(parcel.real_tokens for parcels in cut for parcel in parcels)
        flops = tokens * (self.model.flops.training + forward_passes * self.model.flops.forward)
        peak = None if self.model.peak_flops is None else self.ranks.world * self.model.peak_flops
        mfu = None if peak is None else flops / (peak * laps.total)
        effort = {"train_seconds": laps.total, "phase_seconds": laps.seconds, "flops": flops}
        return replace(stats, **effort, mfu=mfu, peak_flops=peak)  # type: ignore[arg-type]

    def _cut(self, groups: Sequence[RolloutGroup], sheet: Sheet, minibatches: int) -> list[list[Parcel]]:
        """What the forward passes of each minibatch are of: group i is in minibatch i mod m."""
        settings, starts = self.recipe.learner, iter(sheet.starts.tolist())
        first = [[next(starts) for _ in range(size)] for size in sheet.sizes]
        return [
            parcels_of(
                groups[n::minibatches],
                list(chain.from_iterable(first[n::minibatches])),
                settings.tokens_per_micro_batch,
                self.model.layout,
            )
            for n in range(minibatches)
        ]

    def _backward(
        self, parcel: Parcel, columns: Columns, divisor: float, progress: float, figures: Figures | None
    ) -> Tensor:
        """Adds the gradient of one parcel of the minibatch with this `divisor`; its part of the loss.

        Nothing here waits for the device: the host makes the tensors of the next parcel while it computes this one.
        Without `figures` the parcel is another rank's, computed to keep it company: it counts for nothing.
        """
        of, batch = self.recipe.objective, micro_batch(parcel).to(self.model.device)
        rows = batch.tokens
        logprobs, entropy = self.model.logprobs(batch, self.recipe.sampling.temperature, entropy=of.entropy_bonus > 0)
        tokens = columns.tokens(rows, logprobs)
        reference = None if columns.reference is None else columns.reference[rows]
        terms = token_terms(
            tokens,
            columns.coefficients[rows].to(logprobs.dtype),
            of,
            progress=progress,
            divisor=divisor,
            reference=None if reference is None else reference.to(logprobs.dtype),
            entropy=entropy if of.entropy_bonus else None,
        )
        loss = terms.loss.sum() if figures is not None else terms.loss.sum() * 0.0
        loss.backward()
        if figures is None:
            return torch.zeros_like(loss)
        figures.put(
            rows,
            logprobs=logprobs,
            anchor=tokens.anchor,
            entropy=entropy,
            clipped=terms.clipped,
            truncated=terms.truncated,
            masked=terms.masked,
            **({} if reference is None else {"reference": reference}),
        )
        return loss.detach()

    def _whole(self, model: Scorer, sheet: Sheet, cut: Sequence[Sequence[Parcel]]) -> Tensor:
        """Log-probs (N,) of all tokens of the batch under `model` as it is now."""
        out: Tensor | None = None
        for parcel, counts in self._ours([parcel for parcels in cut for parcel in parcels]):
            batch = micro_batch(parcel).to(model.device)
            with torch.no_grad():
                found = model.logprobs(batch, self.recipe.sampling.temperature)[0]
            out = found.new_zeros(len(sheet)) if out is None else out
            if counts:
                out[batch.tokens] = found
        return torch.zeros(len(sheet)) if out is None else self.ranks.total(out.cpu())

    def _ours(self, parcels: Sequence[Parcel]) -> list[tuple[Parcel, bool]]:
        """Our share of the parcels, by cost. Every rank has as many, since their collectives meet in each: a rank with
        fewer goes along with one that counts for nothing (False)."""
        shares = assign(parcels, self.ranks.world)
        ours = [(parcels[i], True) for i in shares[self.ranks.rank]]
        idle = max(len(share) for share in shares) - len(ours)
        smallest = min(parcels, key=lambda parcel: parcel.cost)
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


def summed(parts: Sequence[Tensor]) -> float:
    """Of numbers on the device, in their order, in double precision."""
    return sum(torch.stack(list(parts)).tolist(), 0.0)
