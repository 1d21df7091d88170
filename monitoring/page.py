"""The report of one run, or of several side by side, as one HTML file.

Invariant: the file needs nothing but itself: no script, no network, pictures inside; and every text in it that anybody
wrote is escaped, under a policy that would let no script run. Refuses to know where figures come from.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from datetime import datetime

from broker.audit import Answer, Excerpt, Share
from monitoring.charts import CHARTS, svg
from monitoring.dossier import Dossier, versions
from monitoring.gantt import gantt
from monitoring.life import visible
from monitoring.progress import VERDICTS
from monitoring.timeline import Timeline
from monitoring.trail import Life

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 1.5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 1.6rem 0 .4rem; } h3 { font-size: 1rem; }
th { overflow-wrap: normal; }
.runs { display: grid; gap: 2rem; grid-template-columns: repeat(var(--runs), minmax(0, 1fr)); }
.charts { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.wide { overflow-x: auto; } img { display: block; width: 100%; } .wide img { min-width: 44rem; }
table { border-collapse: collapse; } td.n { font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: normal; color: #666; vertical-align: top; }
td, th { padding: .1rem .9rem .1rem 0; }
pre { white-space: pre-wrap; unicode-bidi: plaintext; }
pre { background: #f6f5f4; padding: .6rem .8rem; margin: .3rem 0; max-height: 24rem; overflow-y: auto; }
.good { border-left: 4px solid #1a7f5a; } .bad { border-left: 4px solid #c0392b; } .dim { color: #666; }
@media (max-width: 50rem) { body { margin: .8rem; } .runs { grid-template-columns: minmax(0, 1fr); } }
""".strip()
ANSWERS = 8  # of a group, with their texts


def page(runs: Sequence[Dossier], now: float) -> str:
    """The whole file."""
    title = ", ".join(run.recipe.run.name for run in runs)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>Headrace: {text(title)}</title><style>{STYLE}</style></head><body>",
            f'<div class="runs" style="--runs: {len(runs)}">',
            *(f"<main>{_run(run)}</main>" for run in runs),
            "</div>",
            f"<h2>Made with</h2>{_table(versions().items())}",
            f'<p class="dim">{datetime.fromtimestamp(now).astimezone():%Y-%m-%d %H:%M}, as far as the run had come</p>',
            "</body></html>",
        ]
    )


def text(said: object) -> str:
    """Anything that somebody wrote, as HTML: escaped, and what is not printable as its escape."""
    return html.escape(visible(str(said).encode("utf-8", "replace").decode()).plain)


def _run(run: Dossier) -> str:
    line = Timeline.of(run)
    charts = "".join(_image(svg(chart, run), chart.__doc__ or "") for chart in CHARTS)
    return "\n".join(
        [
            f'<h1>{text(run.recipe.run.name)} <span class="dim">{text(run.recipe.model_name)}</span></h1>',
            _table(_figures(run)),
            f'<h2>Curves</h2><div class="charts">{charts}</div>',
            f'<h2>Processes</h2><div class="wide">{_image(svg(gantt, run), gantt.__doc__ or "")}</div>',
            f'<p class="dim">{text(" ".join((*line.notes, line.without)))}</p>',
            f"<h2>Completions</h2>{_completions(run)}",
            f"<h2>Recipe</h2><details><summary>as resolved</summary><pre>{text(run.recipe_text)}</pre></details>",
            _table((name, value) for name, value in run.fingerprint.items() if name in ("model", "tokenizer")),
        ]
    )


def _image(picture: bytes, about: str) -> str:
    data = base64.b64encode(picture).decode()
    return f'<img alt="{html.escape(about)}" src="data:image/svg+xml;base64,{data}">'


def _figures(run: Dossier) -> Iterable[tuple[str, str]]:
    s = run.summary
    took = "" if s["minutes"] is None else f" in {s['minutes']:.1f} min"
    yield "optimizer steps", f"{s['steps']} of {s['steps_planned']}{took}; {s['outcome'] or 'not over'}"
    yield "reward, first and last 5 steps", f"{_figure(s['reward_first5'])} → {_figure(s['reward_last5'])}"
    counts = s["pass_at_1_start_samples"], s["pass_at_1_end_samples"]
    of = f"{_figure(s['pass_at_1_start'])} → {_figure(s['pass_at_1_end'])} ({counts[0]} and {counts[1]} samples)"
    yield "held-out pass@1", of if any(counts) else "not evaluated"
    yield (
        "staleness, versions",
        f"mean {_figure(s['staleness_mean'])}, max {s['staleness_max']} of {s['max_staleness']}",
    )
    yield "groups", ", ".join(f"{s['groups'][v]} {v}" for v in VERDICTS)
    for side, name in (("generator", "sampled"), ("learner", "trained")):
        yield (
            f"tokens {name}",
            f"{s[f'completion_tokens_{name}']:,}, {_figure(s[f'{side}_tokens_per_second'], 0)} a second",
        )
    waited = s["learner_wait_fraction"]
    yield "learner waited", "–" if waited is None else f"{waited:.0%} of the time"
    yield "seed, order", f"{s['seed']}, {s['order']}, depth {s['pipeline_depth']}"


def _completions(run: Dossier) -> str:
    chosen = run.chosen
    if not chosen:
        return f'<p class="dim">No texts: {text(run.without or "no group is in the audit log")}.</p>'
    return "".join(_group(word, life) for word, life in chosen.items())


def _group(word: str, life: Life) -> str:
    told = life.sampling
    assert told is not None
    shares = life.use.rollouts if life.use is not None else ()
    paired = [(a, shares[n] if n < len(shares) else None) for n, a in enumerate(told.answers)]
    paired.sort(key=lambda pair: -(pair[0].reward or 0.0))
    shown = paired if len(paired) <= ANSWERS else [*paired[: ANSWERS // 2], *paired[-ANSWERS // 2 :]]
    left = told.answers_left_out + len(paired) - len(shown)
    mean = "" if life.reward is None else f", mean reward {life.reward:.3g}"
    step = "" if life.use is None else f" (step {life.use.step})"
    return "\n".join(
        [
            f"<h3>{word}: {text(life.ticket_id)}, {text(life.verdict)}{step}{mean}</h3>",
            f"<pre>{_excerpt(told.prompt)}</pre>",
            f'<p class="dim">gold answer: <bdi>{_excerpt(told.gold)}</bdi></p>' if told.gold.head else "",
            *(_answer(answer, share, life.reward or 0.0) for answer, share in shown),
            f'<p class="dim">{left} more</p>' if left else "",
        ]
    )


def _answer(answer: Answer, share: Share | None, mean: float) -> str:
    reward = "–" if answer.reward is None else f"{answer.reward:.3g}"
    parts = [f"reward {reward}", *(f"{text(name)} {value:.3g}" for name, value in answer.components.items())]
    if share is not None and share.advantage is not None:
        parts.append(f"advantage {share.advantage:+.3g}")
    if share is not None and share.ratio_mean is not None:
        parts.append(f"π/μ {share.ratio_mean:.3g}")
    parts += [f"{answer.tokens} tokens", *(["cut off"] if answer.truncated else []), text(answer.failed)]
    above = (answer.reward or 0.0) - mean
    kind = "good" if above > 0 else "bad" if above < 0 else "same"
    about = " · ".join(part for part in parts if part)
    return f'<div class="dim">{about}</div><pre class="{kind}">{_excerpt(answer.text)}</pre>'


def _excerpt(said: Excerpt) -> str:
    left = f"<i> […{said.left_out:,} characters left out…] </i>" if said.left_out else ""
    return text(said.head) + left + text(said.tail)


def _table(rows: Iterable[tuple[str, object]]) -> str:
    found = "".join(f'<tr><th>{text(name)}</th><td class="n">{text(value)}</td></tr>' for name, value in rows)
    return f"<table>{found}</table>"


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
