"""The dashboard *Generators*: what each of them does, what it gets, and what its engine says.

Invariant: whatever is told of generators can be narrowed to chosen ones. Refuses to know what the learner makes of it.
"""

from __future__ import annotations

from monitoring.grafana.chart import (
    COUNT,
    RED,
    SECONDS,
    SHARE,
    TOKENS_PER_SECOND,
    YELLOW,
    Board,
    Chart,
    Row,
    buckets,
    mean,
    quantile,
    under_way,
)

ROLLOUTS = "sum(rate(headrace_generator_rollouts_total[$window]))"
LENGTH = "headrace_generator_completion_length_tokens"

SPEED = [
    Chart(
        1,
        "Tokens published a second",
        "Of each generator. One that falls behind its like: see what it waits for, its queue and its key-value cache.",
        TOKENS_PER_SECOND,
        {"{{instance}}": "sum by (instance) (rate(headrace_generator_tokens_total[$window]))"},
    ),
    Chart(
        2,
        "Groups published a minute",
        "To train on and for evaluation. Evaluation comes in bursts; if it crowds out training, evaluate less often "
        "(learner.eval_every) or fewer problems.",
        "suffix:groups/min",
        {"{{kind}}": "60 * sum by (kind) (rate(headrace_generator_groups_total[$window]))"},
        "stack",
    ),
    Chart(
        3,
        "Slots in use",
        "Groups that are sampled or wait for a version, of those that the engine runs at once. Much below 100 %: no "
        "tickets (capacity too small, or the learner is slow), or verifiers cannot keep up: see the time beside.",
        SHARE,
        {
            "{{instance}}": "sum by (instance) (headrace_generator_in_flight_groups)"
            " / sum by (instance) (headrace_generator_slots > 0)"
        },
    ),
    Chart(
        4,
        "Where the time goes",
        "Share of each phase in all that tickets in hand and free slots went through. Much `wait_ticket`: generators "
        "are idle. Much `wait_version`: weights come late. Much `verify`: raise generator.verifier_workers.",
        SHARE,
        {"{{phase}}": under_way()},
        "stack",
        high=1.0,
    ),
    Chart(
        5,
        "What is under way",
        "Groups in each phase at the moment of the scrape, all chosen generators together. A phase that never empties "
        "is where groups are stuck.",
        COUNT,
        {"{{phase}}": "sum by (phase) (headrace_generator_in_phase)"},
        "stack",
    ),
    Chart(
        6,
        "What they wait for",
        "A bar while a generator waits, for what. `ticket` for long is the learner's doing, `version` the weights', "
        "`Redis` the server's.",
        "none",
        {"{{instance}}: {{reason}}": 'sum by (instance, reason) (headrace_generator_waiting{reason!="none"}) > 0'},
        "states",
    ),
]

ANSWERS = [
    Chart(
        11,
        "Mean reward",
        "Of train rollouts as they are published, penalties taken off: some minutes ahead of what the learner shows. "
        "One generator below the others samples with old weights or other settings.",
        "none",
        {
            "{{instance}}": "(sum by (instance) (rate(headrace_generator_reward_total[$window]))"
            " - sum by (instance) (rate(headrace_generator_penalty_total[$window])))"
            " / sum by (instance) (rate(headrace_generator_rollouts_total[$window]))"
        },
        low=None,
    ),
    Chart(
        12,
        "Components of the reward",
        "Mean of each a rollout; what takes away is below 0. A component that rises while the right answers do not is "
        "being gamed: weigh it less.",
        "none",
        {
            "{{component}}": "sum by (component) (rate(headrace_generator_reward_component_total[$window]))"
            f" / ignoring(component) group_left {ROLLOUTS}",
            "{{component}}, taken away": "-sum by (component) "
            "(rate(headrace_generator_penalty_component_total[$window]))"
            f" / ignoring(component) group_left {ROLLOUTS}",
        },
        low=None,
    ),
    Chart(
        13,
        "Completions cut off",
        "Share that reached max_tokens. Above some per cent right answers are lost: raise sampling.max_tokens.",
        SHARE,
        {"cut off": f"sum(rate(headrace_generator_truncated_total[$window])) / sum(rate({LENGTH}_count[$window]))"},
        limits=[(0.2, YELLOW)],
    ),
    Chart(
        14,
        "Completions by length",
        "Tokens in a completion, over the window; darker is more. A band at max_tokens is cut-off answers; two bands "
        "are two kinds of problems.",
        "suffix:tokens",
        {"{{le}}": buckets(LENGTH)},
        "heat",
    ),
    Chart(
        15,
        "Mean length",
        "Tokens in a completion. If it climbs without reward the model rambles: see the overlong penalties of "
        "[objective].",
        "suffix:tokens",
        {"mean": mean(LENGTH)},
    ),
    Chart(
        16,
        "Tickets by what became of them",
        "A minute. `late`: another generator had published first, its lease had lapsed: raise broker.lease_seconds. "
        "`lost`: the same, seen while sampling. `handed_back`: at a stop.",
        "suffix:tickets/min",
        {"{{event}}": "60 * sum by (event) (rate(headrace_generator_tickets_total[$window]))"},
    ),
]

WEIGHTS = [
    Chart(
        21,
        "Policy version",
        "Newest published one, and what each generator holds. The stairs should be close together; one that stays "
        "flat cannot take weights up: see refreshes that failed.",
        "none",
        {
            "published": "max(headrace_policy_version)",
            "{{instance}}": "sum by (instance) (headrace_generator_policy_version)",
        },
        decimals=0,
    ),
    Chart(
        22,
        "Time to take weights up",
        "From a version's notice to serving it. As long as a step, generators are always a version behind: use a "
        "faster policy.directory.",
        SECONDS,
        {
            "median": quantile(0.5, "headrace_generator_refresh_seconds"),
            "90 %": quantile(0.9, "headrace_generator_refresh_seconds"),
        },
    ),
    Chart(
        24,
        "Standing still for weights",
        "Share of its time in which each generator samples nothing because weights are being replaced. Above 2 %: "
        "publish less often (learner.publish_every).",
        SHARE,
        {"{{instance}}": "sum by (instance) (rate(headrace_generator_pause_seconds_sum[$window]))"},
        limits=[(0.02, YELLOW)],
    ),
    Chart(
        23,
        "What went wrong",
        "Within the window: versions that could not be taken up, groups published as failed, engines started anew. "
        "The generator's log says why; `make dead-letters` lists the groups.",
        COUNT,
        {
            "refreshes failed": "sum(increase(headrace_generator_refresh_failures_total[$window]))",
            "groups failed": "sum(increase(headrace_generator_failed_groups_total[$window]))",
            "engine restarts": "sum(increase(headrace_generator_engine_restarts_total[$window]))",
        },
    ),
]

ENGINE = [
    Chart(
        31,
        "vLLM: completions running and queued",
        "A long queue means more slots than the engine can run: lower generator.slots. None running: see what they "
        "wait for. Without data the engine is not vLLM.",
        COUNT,
        {"running": "sum(vllm:num_requests_running)", "queued": "sum(vllm:num_requests_waiting)"},
    ),
    Chart(
        32,
        "vLLM: key-value cache in use",
        "Of each generator. At 100 % completions are put back into the queue and computed again: lower "
        "generator.slots, or give the engine more memory.",
        SHARE,
        {"{{instance}}": "max by (instance) (vllm:kv_cache_usage_perc)"},
        high=1.0,
        limits=[(0.95, RED)],
    ),
    Chart(
        33,
        "vLLM: tokens computed a second",
        "Prompts and completions. More sampled than published means groups that are cut short by a refresh or lost.",
        TOKENS_PER_SECOND,
        {
            "prompts": "sum(rate(vllm:prompt_tokens_total[$window]))",
            "completions": "sum(rate(vllm:generation_tokens_total[$window]))",
        },
    ),
    Chart(
        34,
        "vLLM: prefix cache",
        "Prompt tokens found in the cache. A group shares its prompt, so (G − 1)/G is usual; each refresh empties it.",
        SHARE,
        {
            "found": "sum(rate(vllm:prefix_cache_hits_total[$window]))"
            " / sum(rate(vllm:prefix_cache_queries_total[$window]))"
        },
        high=1.0,
    ),
    Chart(
        35,
        "vLLM: preemptions",
        "Completions put back into the queue within the window. Any at all: the key-value cache is too small for so "
        "many slots.",
        COUNT,
        {"preemptions": "sum(increase(vllm:num_preemptions_total[$window]))"},
    ),
]

HEALTH = [
    Chart(
        41,
        "Since anything was done",
        "Of each generator; looking for tickets counts. Above monitoring.stall_seconds (600) /healthz answers 503: a "
        "generator whose engine hangs restarts it, another one has to be looked at.",
        SECONDS,
        {"{{instance}}": "max by (instance) (headrace_generator_last_progress_seconds)"},
        limits=[(600, RED)],
    ),
    Chart(
        42,
        "Memory",
        "Of each generator's own process, its engine's workers left out. A steady climb is a defect worth an issue.",
        "bytes",
        {"{{instance}}": "max by (instance) (headrace_generator_process_resident_memory_bytes)"},
    ),
    Chart(
        43,
        "CPU",
        "Cores that each generator's own process keeps busy. Near 1 the front end is the limit, not the GPU: start "
        "more generators on it, each with a part of its memory.",
        "suffix:cores",
        {"{{instance}}": "sum by (instance) (rate(headrace_generator_process_cpu_seconds_total[$window]))"},
    ),
]

GENERATORS = Board(
    "generators",
    "Headrace / Generators",
    "What each generator does, what its answers earn, how it takes up weights, and what vLLM says.",
    [
        Row(100, "How fast are they?", SPEED),
        Row(200, "What do they answer?", ANSWERS),
        Row(300, "Do they take up weights?", WEIGHTS),
        Row(500, "Are they well?", HEALTH),
        Row(400, "What does vLLM say?", ENGINE),
    ],
    by_instance=True,
)
