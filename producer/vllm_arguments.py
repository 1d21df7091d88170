"""What vLLM is told: engine arguments, sampling parameters and environment, from a recipe.

Invariant: nothing that vLLM would choose otherwise by itself and that a token's log-prob depends on is left to it.
Refuses to know requests and weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from producer.settings import GeneratorRecipe


def sampling_parameters(recipe: GeneratorRecipe, eos: Sequence[int], seed: int) -> Any:
    """`SamplingParams` of a group: G completions, each to one of the tokens `eos` or to the limit."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = recipe.sampling
    return SamplingParams(
        n=sampling.group_size,
        temperature=sampling.temperature,
        top_p=1.0,
        max_tokens=sampling.max_tokens,
        seed=seed * sampling.group_size,  # vLLM seeds the i-th with seed + i: neighbouring tickets must not overlap
        stop_token_ids=list(eos),
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def engine_arguments(model: str, recipe: GeneratorRecipe, extension: str, on_cpu: bool) -> dict[str, Any]:
    """Of `AsyncEngineArgs`; `extension` is the class mixed into vLLM's worker."""
    settings, sampling = recipe.generator, recipe.sampling
    dtype = settings.dtype
    if dtype == "auto" and on_cpu:
        dtype = recipe.policy.dtype  # vLLM's own choice would round float32 weights to bfloat16
    arguments = {
        "model": model,
        "trust_remote_code": recipe.run.trust_remote_code,
        "load_format": "safetensors",  # never a pickle that lies beside them
        "skip_tokenizer_init": True,  # text is not its business
        "dtype": dtype,
        "seed": recipe.run.seed,
        "max_model_len": recipe.sampling.max_sequence,
        "max_num_seqs": settings.slots * sampling.group_size,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": settings.enforce_eager,
        "logprobs_mode": "processed_logprobs",  # the default ignores the temperature
        "worker_extension_cls": extension,
        "disable_log_stats": not settings.engine_metrics,  # at this logging level it prints none of them
    }
    if on_cpu:
        # Everything that runs fits into one step, so no prompt is ever computed in parts: vLLM throws away what it
        # samples behind a part and turns the request's seeded generator back, which a CPU's generator cannot do.
        whole = settings.slots * sampling.group_size * recipe.sampling.max_sequence
        # Blocks of 32, the smallest that CPU attention takes: a group shares whole blocks of its prompt only.
        cache = {"kv_cache_memory_bytes": int((settings.kv_cache_gib or 1.0) * 2**30), "block_size": 32}
        executor = {"distributed_executor_backend": "producer.quiet_executor.QuietExecutor"}
        return arguments | cache | executor | {"max_num_batched_tokens": whole}
    if settings.kv_cache_gib is not None:  # then vLLM measures nothing
        arguments["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
    return arguments | {"gpu_memory_utilization": settings.gpu_memory_fraction}


def set_environment(threads: int) -> None:
    """What vLLM reads from the environment and nowhere else; what the user has set there stays."""
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would inherit the locks of this process's threads
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # compiles at start, and seeded requests cannot use it
    }
    if threads:
        # Without binding: several generators on one machine would otherwise pin themselves to the same cores.
        wanted |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
