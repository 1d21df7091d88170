"""The dashboard *Pipeline*: one screen that answers whether it learns, how fast, who waits for whom, and how stale.

Invariant: a row a question, and all of it fits on one screen. Refuses to know why: that is what the others are for.
"""

from __future__ import annotations

from monitoring.grafana.chart import (
    BLUE,
    BOUND,
    COUNT,
    GREEN,
    RED,
    SECONDS,
    SHARE,
    TOKENS_PER_SECOND,
    VERSIONS,
    YELLOW,
    Board,
    Chart,
    Row,
    buckets,
    mean,
    quantile,
    setting,
    share,
    under_way,
    unsettled,
)

FIGURES = [
    Chart(
        2,
        "Alerts firing",
        "Alerts of this Prometheus that fire now, of whatever run. Each carries a runbook: open Alerting, or the "
        "Alerts page of Prometheus, and do what it says.",
        COUNT,
        {"alerts": 'count(ALERTS{alertstate="firing"}) or vector(0)'},
        "figure",
        limits=[(1, RED)],
    ),
    Chart(
        3,
        "Reward",
        "Mean reward of everything sampled, degenerate groups included, over the window. If it stays where it began, "
        "look whether groups are degenerate (nothing to learn from) and at the learning rate.",
        "none",
        {"reward": "avg_over_time(headrace_learner_reward[$window])"},
        "figure",
        base=BLUE,
        low=None,
        decimals=3,
    ),
    Chart(
        4,
        "Held-out pass@1",
        "Share of right answers to problems that are never trained on, at the last evaluation; 0 before the first. If "
        "reward rises and this does not, the model learns the training problems or the reward's loopholes.",
        SHARE,
        {"pass@1": "headrace_learner_eval_pass_at_1"},
        "figure",
        base=BLUE,
        decimals=1,
    ),
    Chart(
        5,
        "Optimizer step",
        "Steps done. If it stands still, the figure beside it says since when, and the third row who waits for what.",
        "none",
        {"step": "headrace_learner_step"},
        "figure",
        base=BLUE,
        decimals=0,
    ),
    Chart(
        6,
        "Since the last step",
        "Yellow after five minutes, red after ten: more than a few usual step times means that somebody waits. See "
        "the third row, then the log of that process.",
        SECONDS,
        {"since": "time() - (headrace_learner_last_step_timestamp_seconds > 0)"},
        "figure",
        limits=[(300, YELLOW), (600, RED)],
    ),
    Chart(
        7,
        "Generated",
        "Completion tokens published by all generators. If it is 0, no generator lives or none gets tickets: see what "
        "they wait for.",
        TOKENS_PER_SECOND,
        {"generated": "sum(rate(headrace_generator_tokens_total[$window]))"},
        "figure",
        base=BLUE,
    ),
    Chart(
        8,
        "Staleness of the bound",
        "Oldest token of the last step as a share of max_staleness. At 100 % tickets are near to being dropped or the "
        "learner waits for stragglers: lower pipeline_depth, or raise max_staleness if ESS allows it.",
        SHARE,
        {"of the bound": f"headrace_learner_staleness_max / ignoring(name) {setting('max_staleness')}"},
        "figure",
        limits=[(0.75, YELLOW), (1.0, RED)],
        decimals=0,
    ),
    Chart(
        9,
        "Generators alive",
        "Generators that Redis has heard of lately. Fewer than you started: read the log of the one that is gone; its "
        "tickets go to the others when their lease lapses.",
        "none",
        {"alive": "headrace_live_generators"},
        "figure",
        base=RED,
        limits=[(1, GREEN)],
        decimals=0,
    ),
]

LEARNING = [
    Chart(
        11,
        "Is it learning? Reward and held-out pass@1",
        "Both should rise. Flat from the start: groups are all right or all wrong (see beside), or the learning rate "
        "is too small. A fall after a rise: see effective sample size, entropy and gradient norm on Learner.",
        "none",
        {
            "reward, a step": "headrace_learner_reward",
            "reward, mean": "avg_over_time(headrace_learner_reward[$window])",
            "held-out pass@1": "headrace_learner_eval_pass_at_1",
        },
        low=None,
    ),
    Chart(
        12,
        "What became of the groups",
        "Only trained ones move the weights. Many degenerate ones: problems are too hard or too easy, so change the "
        "task or use a curriculum. Any stale ones: the bound is too tight. Failed ones: `make dead-letters`.",
        SHARE,
        {"{{verdict}}": share("headrace_learner_groups_total", "verdict")},
        "stack",
        high=1.0,
    ),
    Chart(
        13,
        "Effective sample size",
        "How much of a batch counts once its tokens are weighted by π/μ; 100 % is on-policy. Below half of what it "
        "was, data is too old for the learning rate: lower pipeline_depth or the rate. Below guard_min_ess the guard "
        "acts.",
        SHARE,
        {
            "tokens": "headrace_learner_ess",
            "sequences": "headrace_learner_sequence_ess",
            f"{BOUND}, at least": setting("guard_min_ess"),
        },
        high=1.0,
    ),
]

SPEED = [
    Chart(
        21,
        "Is it fast? Tokens a second",
        "What generators publish against what the learner trains on; the gap is degenerate, evaluated and waiting "
        "groups. The lower side is the bottleneck only if the other one waits for it: see the row below.",
        TOKENS_PER_SECOND,
        {
            "generated": "sum(rate(headrace_generator_tokens_total[$window]))",
            "trained on": "sum(rate(headrace_learner_tokens_total[$window]))",
        },
    ),
    Chart(
        22,
        "Time from step to step",
        "Median, 90th percentile and mean over the window. A 90th percentile far above the median means stragglers or "
        "checkpoints: compare with the learner's phases.",
        SECONDS,
        {
            "median": quantile(0.5, "headrace_learner_step_seconds"),
            "90 %": quantile(0.9, "headrace_learner_step_seconds"),
            "mean": mean("headrace_learner_step_seconds"),
        },
    ),
    Chart(
        23,
        "Completion length",
        "Mean tokens in a completion, as sampled and as trained on. If it grows towards max_tokens, answers are cut "
        "off and get no reward; if the trained ones are shorter, long groups go stale: raise max_staleness.",
        "suffix:tokens",
        {
            "sampled": mean("headrace_generator_completion_length_tokens"),
            "trained on": "headrace_learner_completion_length",
        },
    ),
]

WAITING = [
    Chart(
        31,
        "Who waits for whom? The learner's time",
        "Seconds a second in each phase. Much `wait`: generators are the bottleneck, add some or give them more "
        "slots. Hardly any: the learner is, and more generators bring nothing.",
        SHARE,
        {"{{phase}}": "sum by (phase) (rate(headrace_learner_phase_seconds_total[$window]))"},
        "stack",
        high=1.0,
    ),
    Chart(
        32,
        "The generators' time",
        "Share of each phase in all that tickets in hand and free slots went through. Much waiting for tickets: "
        "capacity is too small or the learner too slow. Much `verify`: raise generator.verifier_workers.",
        SHARE,
        {"{{phase}}": under_way()},
        "stack",
        high=1.0,
    ),
    Chart(
        33,
        "What they wait for",
        "A bar while a process waits, for what, and how many generators do. Short ones are normal; a learner's long "
        "bar `no live generator` or `checkpoint` needs somebody to look, and so does any bar `Redis`.",
        "none",
        {
            "learner: {{reason}}": 'sum by (reason) (headrace_learner_waiting{reason!="none"}) > 0',
            "generators: {{reason}}": 'sum by (reason) (headrace_generator_waiting{reason!="none"}) > 0',
        },
        "states",
    ),
]

STALENESS = [
    Chart(
        41,
        "How stale? Trained tokens, against the bound",
        "Depth sets the mean, max_staleness how late a straggler may come. A maximum that rests on the bound makes "
        "the learner wait: give it room. A mean far above pipeline_depth: generators take weights up slowly.",
        VERSIONS,
        {
            "mean": "headrace_learner_staleness_mean",
            "oldest": "headrace_learner_staleness_max",
            f"{BOUND}, at most": setting("max_staleness"),
        },
    ),
    Chart(
        42,
        "Trained tokens by staleness",
        "Tokens of each staleness (versions) over the window; darker is more. Two bands mean that one generator lags "
        "behind the others: see their policy versions on Generators.",
        VERSIONS,
        {"{{le}}": buckets("headrace_learner_staleness_versions")},
        "heat",
    ),
    Chart(
        43,
        "Where the train tickets are",
        "All unsettled tickets; together they stay below credit plus what awaits a checkpoint. None waiting for a "
        "generator starves generators: raise pipeline_depth. All published ones pile up: the learner is slow.",
        "suffix:tickets",
        {
            "{{place}}": 'sum by (place) (headrace_ledger_located_tickets{kind="train"})',
            f"{BOUND} together": unsettled(),
        },
    ),
]


PIPELINE = Board(
    "pipeline",
    "Headrace / Pipeline",
    "Is it learning, is it fast, who waits for whom, how stale: a row each. The links above lead to the details.",
    [
        Row(1, "", FIGURES, across=8, height=3),
        Row(10, "", LEARNING, height=5),
        Row(20, "", SPEED, height=5),
        Row(30, "", WAITING, height=5),
        Row(40, "", STALENESS, height=5),
    ],
)
