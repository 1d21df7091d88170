"""The dashboard *Broker*: the books of a run, its streams and its Redis, as the exporter reads them.

Invariant: nothing here is counted by a process that could have died: all of it is read from Redis. Refuses to know how
groups are made and used.
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
    YELLOW,
    Board,
    Chart,
    Row,
    unsettled,
)

FIGURES = [
    Chart(
        1,
        "Redis",
        "Whether it answered the exporter. Down: start it again on its own data; everybody waits broker.patience "
        "seconds.",
        "none",
        {"redis": "min(headrace_redis_up)"},
        "figure",
        base=RED,
        limits=[(1, GREEN)],
        words={0: "down", 1: "up"},
    ),
    Chart(
        2,
        "Books",
        "Whether issued = verdicts + outstanding, as sets of ids. If not, `make ledger` names the tickets astray; "
        "look who else writes to this Redis.",
        "none",
        {"balanced": "min(headrace_ledger_balanced)"},
        "figure",
        base=RED,
        limits=[(1, GREEN)],
        words={0: "out of balance", 1: "balance"},
    ),
    Chart(
        3,
        "Tickets astray",
        "Outstanding and nowhere, or somewhere and settled. Not 0: `make ledger` lists them.",
        "none",
        {"astray": "sum(headrace_ledger_astray_tickets)"},
        "figure",
        limits=[(1, RED)],
        decimals=0,
    ),
    Chart(
        4,
        "Dead letters",
        "Groups that failed or could not be read, and are kept. `make dead-letters` says why; once that is mended, "
        'ARGS="--requeue all" has their problems issued again.',
        "none",
        {"letters": "headrace_dead_letters"},
        "figure",
        limits=[(1, YELLOW), (100, RED)],
        decimals=0,
    ),
    Chart(
        5,
        "Generators alive",
        "Heard of lately. 0: nobody samples; start one (`make producer`).",
        "none",
        {"alive": "headrace_live_generators"},
        "figure",
        base=RED,
        limits=[(1, GREEN)],
        decimals=0,
    ),
    Chart(
        6,
        "Run",
        "Whether the learner has said that the run is over. Over too early: `make top`, or the end of the learner's "
        "log, gives the reason.",
        "none",
        {"finished": "headrace_run_finished"},
        "figure",
        base=BLUE,
        words={0: "goes on", 1: "is over"},
    ),
]

LEDGER = [
    Chart(
        11,
        "Train tickets issued and settled",
        "A minute. Both are the same over time: credit comes back with each step. Issued alone going to 0 means that "
        "the learner has stopped; settled comes in lumps, a checkpoint each.",
        "suffix:tickets/min",
        {
            "issued": '60 * sum(rate(headrace_ledger_issued_tickets_total{kind="train"}[$window]))',
            "{{verdict}}": "60 * sum by (verdict) "
            '(rate(headrace_ledger_settled_tickets_total{kind="train",verdict!="evaluated"}[$window]))',
        },
    ),
    Chart(
        12,
        "Train tickets without a final verdict",
        "Outstanding, and as many as may be: the credit in play, and what was trained since the last checkpoint. A "
        "climb without end: checkpoints cannot be made durable.",
        "suffix:tickets",
        {
            "outstanding": 'sum(headrace_ledger_outstanding_tickets{kind="train"})',
            f"{BOUND}": unsettled(),
        },
    ),
    Chart(
        13,
        "Where they are",
        "Waiting for a generator, with one, or published to the learner. The pile is before the bottleneck.",
        "suffix:tickets",
        {"{{kind}}, {{place}}": "sum by (kind, place) (headrace_ledger_located_tickets)"},
        "stack",
    ),
    Chart(
        14,
        "Oldest outstanding ticket",
        "Since it was issued. Some steps' time is usual; a straight climb is a ticket that nobody serves: `make "
        "ledger`, then see whether generators take any.",
        SECONDS,
        {"{{kind}}": "max by (kind) (headrace_ledger_oldest_outstanding_seconds)"},
    ),
    Chart(
        15,
        "Evaluation tickets",
        "A minute. Bursts at each evaluation; issued without `evaluated` after it: no generator serves them.",
        "suffix:tickets/min",
        {
            "issued": '60 * sum(rate(headrace_ledger_issued_tickets_total{kind="eval"}[$window]))',
            "{{verdict}}": "60 * sum by (verdict) "
            '(rate(headrace_ledger_settled_tickets_total{kind="eval",verdict=~"evaluated|failed"}[$window]))',
        },
    ),
    Chart(
        16,
        "Policy version by role",
        "Published, the learner's, and the oldest that a generator holds. The learner is ahead while it uploads; a "
        "generator that stays behind cannot take weights up.",
        "none",
        {
            "published": "max(headrace_policy_version)",
            "learner": "max(headrace_learner_policy_version)",
            "slowest generator": "min(headrace_generator_policy_version)",
        },
        decimals=0,
    ),
]

STREAMS = [
    Chart(
        21,
        "Entries",
        "Of each stream. Settled ones are trimmed, so it is bounded; rollouts that pile up wait for the learner, "
        "tickets for generators.",
        "suffix:entries",
        {"{{stream}}, {{kind}}": "sum by (stream, kind) (headrace_stream_entries)"},
    ),
    Chart(
        22,
        "Claimed and not settled",
        "Pending entries. Of rollouts it saws with the checkpoints; of tickets it is what generators have in hand.",
        "suffix:entries",
        {"{{stream}}, {{kind}}": "sum by (stream, kind) (headrace_stream_pending_entries)"},
    ),
    Chart(
        23,
        "Age of the oldest entry",
        "0 without one. Rollouts older than a few checkpoints: the learner does not settle. Tickets older than a "
        "lease: no generator takes them.",
        SECONDS,
        {"{{stream}}, {{kind}}": "max by (stream, kind) (headrace_stream_oldest_entry_seconds)"},
    ),
    Chart(
        24,
        "Dead letters",
        "Kept, dropped for newer ones (in the window), and waiting to be issued again. Any growth: `make "
        "dead-letters`.",
        COUNT,
        {
            "kept": "headrace_dead_letters",
            "dropped": "increase(headrace_dead_letters_dropped_total[$window])",
            "requeued": "headrace_requeued_tickets",
        },
    ),
    Chart(
        25,
        "Groups published too late",
        "Within the window: another generator's copy was there first. Now and then is normal after a crash; steadily, "
        "leases are too short for the answers: raise broker.lease_seconds.",
        "suffix:groups",
        {"late": "increase(headrace_late_groups_total[$window])"},
    ),
]

SERVER = [
    Chart(
        31,
        "Memory of Redis",
        "Used, and what it may use where it has a limit. When it is full nothing can be published; draining recovers "
        "it, but give it room: fewer or shorter groups in play, or a higher maxmemory.",
        "bytes",
        {"used": "headrace_redis_used_memory_bytes", f"{BOUND}, at most": "headrace_redis_maxmemory_bytes > 0"},
    ),
    Chart(
        32,
        "The exporter's share of Redis",
        "Time that reading the books takes; Redis answers nobody else meanwhile. Above 5 %: raise "
        "monitoring.exporter_seconds.",
        SHARE,
        {"reading": 'sum(rate(headrace_exporter_phase_seconds_total{phase="read"}[$window]))'},
        limits=[(0.05, YELLOW)],
    ),
    Chart(
        33,
        "Processes that answer Prometheus",
        "1 for each that did. One at 0 has died or moved its port: `make top` and its log say which.",
        "none",
        {"{{job}} {{instance}}": "up"},
        high=1.0,
        decimals=0,
    ),
]

BROKER = Board(
    "broker",
    "Headrace / Broker",
    "The books of the run, its streams, and its Redis.",
    [
        Row(50, "", FIGURES, across=6, height=3),
        Row(100, "Do the books balance?", LEDGER),
        Row(200, "Do the streams flow?", STREAMS),
        Row(300, "Is Redis well?", SERVER),
    ],
)
