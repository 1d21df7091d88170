"""Which group somebody means: by its ticket, or by what is remarkable about it.

Invariant: what is named names one group or is refused. Refuses to know Redis and screens.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.errors import Malformed, Refused
from broker.ticket_id import TicketId
from monitoring.letters import printable
from monitoring.trail import Life

WORDS = ("best", "worst", "latest", "surprising")


def pick(lives: Sequence[Life], wanted: str) -> Life | None:
    """The one that is meant, None if there is none. Raises `Refused` where it could be several.

    `wanted`: a ticket's id or the beginning of one, its number, or one of `WORDS`: the highest and the lowest mean
    reward, the newest, the one with the most surprising completion. Of equals the newest.
    """
    if wanted in WORDS:
        return _remarkable(lives, wanted)
    if wanted.isascii() and wanted.isdecimal():
        return next((life for life in reversed(lives) if number_of(life.ticket_id) == int(wanted[:19])), None)
    found = [life for life in lives if life.ticket_id == wanted]
    found = found or [life for life in lives if life.ticket_id.startswith(wanted)]
    if len(found) > 1:
        few = ", ".join(printable(life.ticket_id) for life in found[:3])
        raise Refused(f"{len(found)} groups begin with {printable(wanted)} ({few}, …)", "say more of the one you mean")
    return found[0] if found else None


def number_of(ticket_id: str) -> int | None:
    """Of a train ticket."""
    try:
        return TicketId.parse(ticket_id).number
    except Malformed:
        return None


def surprise(life: Life) -> tuple[float, float]:
    """Of the completion that did most unlike the others of its group: the distance of its reward from the mean of
    theirs, and how unlikely it was, −mean log μ of its tokens (nats)."""
    if life.sampling is None:
        return 0.0, 0.0
    told = [(a.reward, a.logprob) for a in life.sampling.answers if a.reward is not None]
    total, others = sum(reward for reward, _ in told), max(1, len(told) - 1)
    return max(
        ((abs(reward - (total - reward) / others), -(logprob or 0.0)) for reward, logprob in told), default=(0.0, 0.0)
    )


def _remarkable(lives: Sequence[Life], word: str) -> Life | None:
    if word == "latest":
        return lives[-1] if lives else None
    some = [life for life in reversed(lives) if life.reward is not None]  # of equals max takes the first
    sign = -1.0 if word == "worst" else 1.0
    if word == "surprising":
        return max(some, key=surprise, default=None)
    return max(some, key=lambda life: sign * (life.reward or 0.0), default=None)
