"""The life of one group, for a person in a terminal.

Invariant: nothing that a model wrote reaches the terminal but as printable text; what is not known is not shown as 0.
Refuses to know where it was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from broker.audit import Answer, Excerpt, Share
from monitoring.letters import printable
from monitoring.pick import number_of
from monitoring.trail import Life

STYLES = {"trained": "green", "degenerate": "default", "stale": "yellow", "failed": "red"}
DIM = "dim"


def shown(life: Life) -> RenderableType:
    """All of it."""
    title = Text.assemble((printable(life.ticket_id), "bold"), "  ")
    title.append(life.verdict, f"bold {STYLES.get(life.verdict, 'yellow')}")
    parts: list[RenderableType] = [title, Text(), _facts(life)]
    told = life.sampling
    if told is not None:
        parts += [Text(), Text(f"prompt, {told.prompt_tokens} tokens", DIM), _block(told.prompt)]
        if told.gold.head:
            parts += [Text("gold answer", DIM), _block(told.gold)]
    parts += [part for rollout in _rollouts(life) for part in (Text(), *rollout)]
    left = (told.answers_left_out if told else 0) or (life.use.rollouts_left_out if life.use else 0)
    if left:
        parts += [Text(), Text(f"{left} more rollouts had no room in the log (broker.audit_bytes)", DIM)]
    return Group(*parts)


def visible(text: str) -> Text:
    """Lines stay lines; what else is not printable shows as its escape, and does nothing."""
    out = Text()
    for char in text:
        if char == "\n" or char.isprintable():
            out.append(char)
        else:
            out.append(char.encode("unicode_escape").decode(), "reverse")
    return out


def excerpt(text: Excerpt) -> Text:
    """A text, and what was left out of it."""
    out = visible(text.head)
    if text.left_out:
        out.append(f" […{text.left_out:,} characters left out…] ", "italic dim").append_text(visible(text.tail))
    return out


def clock(at: float) -> str:
    """A time of day."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _facts(life: Life) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=DIM, no_wrap=True)
    table.add_column(overflow="fold")
    for label, fact in _rows(life):
        table.add_row(label, visible(fact))
    return table


def _rows(life: Life) -> Iterator[tuple[str, str]]:
    told, use = life.sampling, life.use
    number = number_of(life.ticket_id)
    if told is not None:
        level = f" ({told.level})" if told.level else ""
        asks = f"asks for version {told.min_policy_version} or newer"
        yield "ticket", f"number {number}, problem {told.problem}{level}, seed {told.seed}, {asks}"
        again = f", delivery {told.deliveries}" if told.deliveries > 1 else ""
        yield "sampled", f"by {told.generator}{_versions(life)}{again}"
        if told.failed.head:
            yield "failed", told.failed.head + (" …" if told.failed.left_out else "")
    elif use is not None:
        yield "ticket", f"number {number}; what its generator told is not in the log"
    if use is not None:
        yield "verdict", _verdict(life)
        if use.reason and (told is None or not told.failed.head):
            yield "because", use.reason
    if life.rewards:
        yield "reward", f"{life.reward:.4g}, the mean of " + " ".join(f"{reward:.4g}" for reward in life.rewards)
    if told is not None:
        yield "issued", clock(told.issued_at)
    if life.used_at is not None:
        total = f", after {_seconds(life.used_at - told.issued_at)}" if told is not None else ""
        yield "used", clock(life.used_at) + total
    if life.phases:
        yield "took", ", ".join(f"{_seconds(seconds)} {name}" for name, seconds in life.phases)
    if life.attempts > 1:
        which = "this is the one that counted" if use is not None and use.generator else "this is the latest"
        yield "attempts", f"{life.attempts} generators told of this ticket; {which}"


def _verdict(life: Life) -> str:
    use = life.use
    assert use is not None
    old = "" if use.staleness is None else f", staleness {use.staleness}"
    if use.verdict == "trained":
        return f"trained in step {use.step} at version {use.version}{old}; version {use.version + 1} has learnt from it"
    why = {"degenerate": ": all rewards are equal, there is nothing to compare"}.get(use.verdict, "")
    return f"{use.verdict} after step {use.step} at version {use.version}{old}{why}"


def _versions(life: Life) -> str:
    found = life.versions
    if not found:
        return ""
    return f" at version {found[0]}" if len(found) == 1 else f" at versions {', '.join(map(str, found))}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.2f} s"


def _rollouts(life: Life) -> Iterator[list[RenderableType]]:
    answers = () if life.sampling is None else life.sampling.answers
    shares = () if life.use is None else life.use.rollouts
    for n in range(max(len(answers), len(shares))):
        answer = answers[n] if n < len(answers) else None
        share = shares[n] if n < len(shares) else None
        lines: list[RenderableType] = [_head(n, answer, share)]
        if figures := _figures(share):
            lines.append(Text(f"    {figures}", DIM))
        if answer is not None:
            lines.append(visible(f"    {_sampled(answer)}"))
            lines[-1].stylize(DIM)  # type: ignore[union-attr]
            lines.append(_block(answer.text))
        yield lines


def _head(number: int, answer: Answer | None, share: Share | None) -> Text:
    reward = share.reward if share is not None else None if answer is None else answer.reward
    text = Text.assemble((f"{number + 1:>3} ", "bold"), "reward ")
    text.append("–" if reward is None else f"{reward:.4g}", "bold")
    if share is not None and share.advantage is not None:
        text.append("  advantage ").append(f"{share.advantage:+.4g}", "bold")
    if answer is not None:
        for name, value in answer.components.items():
            text.append("  ").append_text(visible(name)).append(f" {value:.4g}")
        if answer.failed:
            text.append("  ").append_text(visible(answer.failed.replace("\n", " "))).stylize("red", len(text))
    return text


def _figures(share: Share | None) -> str:
    """Of what the learner made of it."""
    if share is None or share.ratio_mean is None:
        return "" if share is None or share.advantage is None else "π/μ is not a number"
    low, high = (f"{value:.4g}" if value is not None else "–" for value in (share.ratio_min, share.ratio_max))
    bounded = [
        f"{name} {value:.1%}"
        for name, value in (("clipped", share.clipped), ("truncated", share.truncated), ("masked", share.masked))
        if value is not None
    ]
    return f"π/μ {share.ratio_mean:.4g} ({low} … {high})  of its tokens {', '.join(bounded)}"


def _sampled(answer: Answer) -> str:
    spans = [f"version {span.policy_version}" for span in answer.spans]
    if len(spans) > 1:
        spans = [f"{name} ({span.start}–{span.end})" for name, span in zip(spans, answer.spans, strict=True)]
    likely = "" if answer.logprob is None else f", log μ {answer.logprob:.3f} a token"
    cut = ", cut off by sampling.max_tokens" if answer.truncated else ""
    return f"{answer.tokens} tokens of {', '.join(spans)}{likely}{cut}"


def _block(text: Excerpt) -> RenderableType:
    return Padding(excerpt(text), (0, 0, 0, 4), expand=False)
