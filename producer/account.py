"""What a generator tells the audit log of a group that it has published.

Invariant: everything here is data that was there already; what is no number is told as none, so that a group which was
not fit for training can be looked at. Refuses to know where notes go, and what becomes of the group.
"""

from __future__ import annotations

import math

from broker.audit import REASON, Answer, Excerpt, Sampling, Span, clean
from broker.schema import LARGEST_FLOAT32, MAX_COMPONENTS, MAX_NAME_BYTES
from broker.tickets import Claim
from producer.engine import Completion
from producer.sampler import Served
from producer.tasks import Verdict


def account(claim: Claim, served: Served, prompt: str, seconds: float) -> Sampling:
    """The note; `prompt` as the model was given it, `seconds` from the claim to the publication."""
    ticket, problem = claim.ticket, served.problem
    told = zip(served.completions, served.texts, served.verdicts, strict=True)
    return Sampling(
        ticket_id=ticket.ticket_id,
        problem=ticket.problem,
        seed=ticket.seed,
        min_policy_version=ticket.min_policy_version,
        issued_at=claim.issued_at,
        deliveries=claim.deliveries,
        generator=clean(served.group.generator)[:256],
        prompt=Excerpt.of(prompt),
        prompt_tokens=0 if served.prompt is None else len(served.prompt),
        gold=Excerpt.of("" if problem is None else problem.gold),
        level="" if problem is None else clean(problem.level)[:64],
        failed=Excerpt.of(served.group.failed),
        answers=tuple(_answer(*one) for one in told),
        wait_seconds=served.waited,
        sample_seconds=served.group.sample_seconds,
        verify_seconds=served.verified,
        hand_seconds=seconds,
    )


def _answer(completion: Completion, text: str, verdict: Verdict) -> Answer:
    logprob = float(completion.logprobs.mean()) if len(completion.logprobs) else math.nan
    names = {clean(name)[:MAX_NAME_BYTES]: value for name, value in verdict.components.items()}
    return Answer(
        text=Excerpt.of(text),
        tokens=len(completion.tokens),
        logprob=logprob if math.isfinite(logprob) else None,
        reward=float(verdict.reward) if abs(verdict.reward) <= LARGEST_FLOAT32 else None,
        components={name: float(v) for name, v in list(names.items())[:MAX_COMPONENTS] if math.isfinite(v)},
        failed=clean(verdict.failed)[:REASON],
        truncated=completion.truncated,
        spans=tuple(Span(policy_version=s.policy_version, start=s.start, end=s.end) for s in completion.spans),
    )
