"""From an engine's completions and the verifier's verdicts to a RolloutGroup.

Invariant: what is said here is data, true of the completion whatever the algorithm: nothing of baselines or clipping;
and the learner can read it: a group that breaks a rule of the schema becomes the reason why.
Refuses to know Redis and the engine's library.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.decoding import decode_group
from broker.errors import Malformed
from broker.schema import Ints, Rollout, RolloutGroup, Ticket, solves, tombstone
from producer.engine import Completion
from producer.verify import Verdict


def assemble(
    ticket: Ticket,
    prompt: Ints,
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    *,
    generator: str,
    sample_seconds: float,
) -> RolloutGroup:
    """The group of a ticket: `prompt` (P,), G completions and their G verdicts, in the same order.

    A tombstone where the learner would refuse it: a log-prob or a reward that is not finite, say.
    """
    rollouts = tuple(
        Rollout(c.tokens, c.logprobs, c.spans, float(v.reward), dict(v.components), c.truncated, answer)
        for c, v, answer in zip(completions, verdicts, answers(verdicts), strict=True)
    )
    group = RolloutGroup(
        ticket.ticket_id,
        ticket.kind,
        ticket.problem,
        prompt,
        rollouts,
        generator=generator,
        sample_seconds=sample_seconds,
    )
    try:
        decode_group(group.wire)
    except (Malformed, ValueError) as error:  # ValueError: a name that is no text cannot even be encoded
        return tombstone(ticket, f"sampled, and not fit for training: {error}", generator)
    return group


def answers(verdicts: Sequence[Verdict]) -> list[int]:
    """A number for each different answer of a group, -1 where none was declared; all that solve it are one answer."""
    numbers: dict[object, int] = {}
    keys = [True if solves(v.reward, v.components) else v.answer for v in verdicts]
    return [-1 if key == "" else numbers.setdefault(key, len(numbers)) for key in keys]
