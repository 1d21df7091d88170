"""The dashboard *Learner*: everything that the learner says of its training.

Invariant: a row a question. Refuses to know generators: what they do to the learner shows as waiting and staleness.
"""

from __future__ import annotations

from monitoring.grafana.chart import (
    BOUND,
    COUNT,
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
)

LEARNING = [
    Chart(
        1,
        "Reward of all groups",
        "Mean over everything consumed since the step before, degenerate groups included, so that it cannot rise by "
        "leaving any out. Noisy by nature: judge the mean over the window.",
        "none",
        {"a step": "headrace_learner_reward", "mean": "avg_over_time(headrace_learner_reward[$window])"},
        low=None,
    ),
    Chart(
        2,
        "Held-out pass@k and majority@k",
        "Of problems that are never trained on, at the last evaluation. pass@1 that rises while pass@k falls means "
        "that answers lose their variety: see entropy, and consider a KL term or a higher clip.",
        SHARE,
        {
            "pass@{{k}}": "headrace_learner_eval_pass_at",
            "most of {{k}}": "headrace_learner_eval_majority_at",
        },
        high=1.0,
    ),
    Chart(
        3,
        "Held-out pass@1 by task and level",
        "Which part of the task is learned. A level that stays at 0 gives nothing but degenerate groups: leave it "
        "out, or let a curriculum come to it.",
        SHARE,
        {"{{task}} {{level}}": "headrace_learner_eval_by_pass_at_1"},
        high=1.0,
    ),
    Chart(
        4,
        "Loss",
        "Of policy gradients: its size says little, and it does not fall as reward rises. Look only for jumps and for "
        "values that are not numbers.",
        "none",
        {"loss": "headrace_learner_loss"},
        low=None,
    ),
    Chart(
        5,
        "Entropy",
        "Mean over the tokens trained on. A slow fall is learning; near 0 nothing new is tried any more, and a rise "
        "together with a falling reward is a policy that comes apart: lower the learning rate, or set a KL term.",
        "suffix:nats",
        {"entropy": "headrace_learner_entropy"},
    ),
    Chart(
        6,
        "Gradient norm, before clipping",
        "Steady is good. Spikes that come with a low effective sample size are stale data; a steady climb is the "
        "beginning of a collapse: lower the learning rate.",
        "none",
        {"norm": "headrace_learner_grad_norm"},
    ),
    Chart(
        7,
        "Learning rate",
        "As it was at the last step, with warm-up and decay. If it is not what you meant, see learner.learning_rate "
        "and its schedule in the run's recipe.toml.",
        "sci",
        {"rate": "headrace_learner_learning_rate"},
    ),
    Chart(
        8,
        "Spread of the advantages",
        "Standard deviation over the tokens trained on. Towards 0 there is nothing left to learn from the groups; a "
        "wide one asks for a normalised advantage.",
        "none",
        {"standard deviation": "headrace_learner_advantage_std"},
    ),
    Chart(
        9,
        "Steps that the collapse guard minds",
        "Steps in a row with an effective sample size or gradient norm out of range. Above 0 for long: the guard is "
        "about to act, see learner.guard_min_ess and the row below.",
        "none",
        {"in a row": "headrace_learner_out_of_range_steps"},
        limits=[(1, YELLOW)],
        decimals=0,
    ),
]

OFF_POLICY = [
    Chart(
        11,
        "Effective sample size",
        "Of the ratios π/μ, as a share of the batch: of tokens, and of whole sequences, which is always less. Below "
        "half for tokens, lower pipeline_depth or the learning rate.",
        SHARE,
        {
            "tokens": "headrace_learner_ess",
            "sequences": "headrace_learner_sequence_ess",
            f"{BOUND}, at least": setting("guard_min_ess"),
        },
        high=1.0,
    ),
    Chart(
        12,
        "Importance ratio π/μ",
        "Percentiles and mean over the tokens; 1 is on-policy. A mean away from 1 is a mismatch of engine and "
        "learner, wide percentiles are stale data.",
        "none",
        {
            "1 %": "headrace_learner_ratio_p01",
            "median": "headrace_learner_ratio_p50",
            "mean": "headrace_learner_ratio_mean",
            "99 %": "headrace_learner_ratio_p99",
        },
        low=None,
        decimals=3,
    ),
    Chart(
        13,
        "Largest importance ratio",
        "Of a single token. Hundreds, step after step: single tokens rule the gradient unless the objective "
        "truncates, clips or masks them; see the charts below.",
        "none",
        {"largest": "headrace_learner_ratio_max"},
    ),
    Chart(
        14,
        "KL(μ‖π)",
        "How far π has gone from the policies that sampled, two estimates. They part where ratios are wild; either "
        "above some hundredths: data is too old for the learning rate.",
        "suffix:nats",
        {"k3": "headrace_learner_kl", "k1": "headrace_learner_kl_k1"},
        low=None,
    ),
    Chart(
        15,
        "KL(π‖π_ref)",
        "Distance from the reference model, where objective.kl has one (no data otherwise). If it runs away, raise "
        "kl_coefficient.",
        "suffix:nats",
        {"k3": "headrace_learner_kl_reference"},
        low=None,
    ),
    Chart(
        16,
        "Clip, truncation, mask",
        "Tokens whose gradient was removed by the clip, whose weight was held at its cap, whose weight was set to 0. "
        "More than a fifth: most of a batch does not count, see the effective sample size.",
        SHARE,
        {
            "clip": "headrace_learner_clip_fraction",
            "truncation": "headrace_learner_truncation_fraction",
            "mask": "headrace_learner_mask_fraction",
        },
    ),
    Chart(
        17,
        "The same by the sign of the advantage",
        "What was removed from good answers (+) and from bad ones (−). Much more on one side: that side's bound is "
        "too tight, and the policy learns from the other alone.",
        SHARE,
        {
            "clip +": "headrace_learner_clip_fraction_positive",
            "clip −": "headrace_learner_clip_fraction_negative",
            "truncation +": "headrace_learner_truncation_fraction_positive",
            "truncation −": "headrace_learner_truncation_fraction_negative",
            "mask +": "headrace_learner_mask_fraction_positive",
            "mask −": "headrace_learner_mask_fraction_negative",
        },
    ),
    Chart(
        18,
        "Mismatch by staleness",
        "KL(μ‖π) of the tokens of each staleness. It should grow with staleness; if that of 0 is as large as the "
        "rest, it is the engine's numerics: see beside.",
        "suffix:nats",
        {"{{staleness}} versions": "headrace_learner_mismatch"},
        low=None,
    ),
    Chart(
        19,
        "Mismatch: the engine's, and staleness'",
        "KL(μ‖π) of tokens of this very version (numerics alone), and what stale ones add. A growing part of the "
        "engine: compare dtype, temperature and vLLM's version on both sides.",
        "suffix:nats",
        {
            "engine": "headrace_learner_mismatch_engine",
            "staleness": "headrace_learner_mismatch_staleness",
        },
        low=None,
    ),
]

STALENESS = [
    Chart(
        21,
        "Staleness of trained tokens",
        "Mean, oldest, and what is allowed. The oldest never goes beyond; if it rests there the learner waits for "
        "stragglers: raise max_staleness, or lower pipeline_depth.",
        VERSIONS,
        {
            "mean": "headrace_learner_staleness_mean",
            "oldest": "headrace_learner_staleness_max",
            f"{BOUND}, at most": setting("max_staleness"),
        },
    ),
    Chart(
        22,
        "Trained tokens by staleness",
        "Tokens of each staleness (versions) over the window; darker is more. A long tail upwards is stragglers; two "
        "bands are two kinds of generators.",
        VERSIONS,
        {"{{le}}": buckets("headrace_learner_staleness_versions")},
        "heat",
    ),
    Chart(
        23,
        "Staleness against length",
        "Mean staleness of completions up to so many tokens. Long ones are staler by nature; if the longest come to "
        "the bound they are dropped next, and the model learns from short answers alone: raise max_staleness.",
        VERSIONS,
        {
            "≤ {{length}} tokens": "sum by (length) "
            "(rate(headrace_learner_completions_staleness_versions_total[$window]))"
            " / sum by (length) (rate(headrace_learner_completions_total[$window]))"
        },
    ),
]

SPEED = [
    Chart(
        31,
        "Tokens trained on a second",
        "Completion tokens. If it falls while the batch is the same, see which phase grew.",
        TOKENS_PER_SECOND,
        {"tokens": "sum(rate(headrace_learner_tokens_total[$window]))"},
    ),
    Chart(
        32,
        "Where the time goes",
        "Seconds a second in each phase. Much `wait`: more generators. Much `publish` or `checkpoint`: a slow disk, "
        "or too often (learner.publish_every, learner.checkpoint_every).",
        SHARE,
        {"{{phase}}": "sum by (phase) (rate(headrace_learner_phase_seconds_total[$window]))"},
        "stack",
        high=1.0,
    ),
    Chart(
        33,
        "Time from step to step",
        "Median, 90th percentile, mean. Twice the usual: see the phases beside.",
        SECONDS,
        {
            "median": quantile(0.5, "headrace_learner_step_seconds"),
            "90 %": quantile(0.9, "headrace_learner_step_seconds"),
            "mean": mean("headrace_learner_step_seconds"),
        },
    ),
    Chart(
        34,
        "Arithmetic",
        "Model FLOPs a second over all time, waiting included; the model's own, whatever padding costs. Compare it "
        "with itself: a fall is waiting or a bad batch.",
        "flops",
        {"training": "sum(rate(headrace_learner_flops_total[$window]))"},
    ),
    Chart(
        35,
        "MFU",
        "Of what the devices could do, while training; no data where their peak is not known (CPUs). Below a tenth on "
        "a GPU: raise learner.tokens_per_micro_batch, or look for a phase other than forward_backward.",
        SHARE,
        {"utilisation": "headrace_learner_mfu"},
    ),
    Chart(
        36,
        "Groups waiting for a batch",
        "Arrived and not yet used. Always 0: the learner waits for generators. Always high: generators could do with "
        "less, and their groups age: lower pipeline_depth.",
        "suffix:groups",
        {"buffer": "headrace_learner_buffer", "a batch": setting("groups_per_step")},
    ),
    Chart(
        37,
        "Publication of weights",
        "Upload and commit of a version, beside the training. As long as a step, it holds the next one up: use a "
        "faster policy.directory, or policy.dtype bfloat16.",
        SECONDS,
        {
            "median": quantile(0.5, "headrace_learner_publication_seconds"),
            "90 %": quantile(0.9, "headrace_learner_publication_seconds"),
        },
    ),
    Chart(
        38,
        "Checkpoints",
        "Seconds that the last ones took to write. Ever longer: the disk is slow or nearly full.",
        SECONDS,
        {"mean": mean("headrace_learner_checkpoint_seconds")},
    ),
    Chart(
        39,
        "Steps not yet in a checkpoint",
        "What a crash would have repeated. It saws between 0 and learner.checkpoint_every; above twice that, claiming "
        "stops until the disk takes one.",
        "suffix:steps",
        {"steps": "headrace_learner_step - headrace_learner_checkpoint_step"},
    ),
]

DATA = [
    Chart(
        41,
        "Groups by verdict",
        "Groups a minute. Rising degenerate ones: problems are solved or too hard. Any stale ones: see staleness. Any "
        "failed ones: `make dead-letters`.",
        "suffix:groups/min",
        {"{{verdict}}": "60 * sum by (verdict) (rate(headrace_learner_groups_total[$window]))"},
        "stack",
    ),
    Chart(
        42,
        "Completion length",
        "Mean tokens of what was consumed since the step before, and what is allowed. Length that grows without "
        "reward is a loophole: see the overlong penalties of [objective].",
        "suffix:tokens",
        {"mean": "headrace_learner_completion_length", f"{BOUND}, at most": setting("max_tokens")},
    ),
    Chart(
        43,
        "Completions cut off",
        "Share that reached max_tokens. Above some per cent their rewards are wrong: raise sampling.max_tokens.",
        SHARE,
        {"cut off": "headrace_learner_truncated_fraction"},
        limits=[(0.2, YELLOW)],
    ),
    Chart(
        44,
        "Epochs",
        "How often each part of the task was walked through. A part that stands still is one that the curriculum "
        "avoids.",
        "none",
        {"{{part}}": "headrace_learner_curriculum_epochs"},
    ),
    Chart(
        45,
        "Problems by their latest groups",
        "Never, sometimes and always solved, as a curriculum that looks has seen them (no data for one that does "
        "not). Only the middle ones teach: when they run out, give it other problems.",
        COUNT,
        {"{{state}}": "headrace_learner_curriculum_problems"},
        "stack",
    ),
]

HEALTH = [
    Chart(
        51,
        "Since anything was done, and since it waits",
        "Both saw along the bottom. Above monitoring.stall_seconds (600) /healthz answers 503 and somebody has to "
        "look; its body, and `make top`, say what it waits for.",
        SECONDS,
        {
            "progress": "headrace_learner_last_progress_seconds",
            "waiting": "headrace_learner_waiting_since_seconds",
        },
        limits=[(600, RED)],
    ),
    Chart(
        52,
        "What went wrong",
        "Within the window: updates thrown away (gradient not finite), checkpoints and uploads that found no room, "
        "books made anew. Any at all: the log says why; no room means `df -h`.",
        COUNT,
        {
            "updates skipped": "increase(headrace_learner_skipped_updates_total[$window])",
            "checkpoints failed": "increase(headrace_learner_checkpoint_failures_total[$window])",
            "uploads failed": "increase(headrace_learner_publication_failures_total[$window])",
            "books rebuilt": "increase(headrace_learner_rebuilds_total[$window])",
        },
    ),
    Chart(
        53,
        "Memory",
        "Of the learner's process (rank 0). It is bounded by design: a steady climb is a defect worth an issue, with "
        "this chart.",
        "bytes",
        {"memory": "headrace_learner_process_resident_memory_bytes"},
    ),
]

LEARNER = Board(
    "learner",
    "Headrace / Learner",
    "What the learner does and how well: learning, distance from the policies that sampled, staleness, speed, data, "
    "health.",
    [
        Row(100, "Does it learn?", LEARNING),
        Row(200, "How far is it from the policies that sampled?", OFF_POLICY),
        Row(300, "How stale is what it trains on?", STALENESS),
        Row(400, "How fast is it?", SPEED),
        Row(500, "What does it train on?", DATA),
        Row(600, "Is it well?", HEALTH),
    ],
)
