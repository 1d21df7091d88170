"""The plain engine: repeatable groups, honest log-probs, weights that are replaced whole or not at all."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from broker.errors import Refused
from producer.engine import Completion
from producer.settings import GeneratorRecipe
from producer.transformers_engine import TransformersEngine

T = TypeVar("T")
EOS = list(range(270, 300))  # a tenth of the vocabulary: most answers end by themselves
PROMPT = np.array([5, 17, 99, 3, 42], np.int32)


def make_recipe(temperature: float = 1.0, **generator: Any) -> GeneratorRecipe:
    return GeneratorRecipe.model_validate(
        {
            "run": {"name": "test", "model": "unused", "steps": 1},
            "sampling": {"group_size": 4, "temperature": temperature, "max_tokens": 24, "max_prompt_tokens": 16},
            "generator": {"engine": "transformers", "slots": 3, "device": "cpu"} | generator,
            "task": {"name": "addition"},
        }
    )


def make_weights(seed: int) -> LlamaForCausalLM:
    """Two layers, tied embeddings; scaled up so that its answers are far from uniform and differ between seeds."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model folder, then two policies: weights alone, the tied head left out, as a publisher writes them."""
    root = tmp_path_factory.mktemp("policies")
    model = make_weights(0)
    model.save_pretrained(root / "model")
    GenerationConfig(eos_token_id=EOS).save_pretrained(root / "model")
    for seed in (1, 2):
        (root / f"v{seed}").mkdir()
        tensors = {name: tensor for name, tensor in make_weights(seed).state_dict().items() if name != "lm_head.weight"}
        save_file(tensors, root / f"v{seed}" / "model.safetensors")
    return [root / "model", root / "v1", root / "v2"]


def with_engine(
    model: Path, use: Callable[[TransformersEngine], Awaitable[T]], recipe: GeneratorRecipe | None = None
) -> T:
    async def story() -> T:
        engine = TransformersEngine(str(model), recipe or make_recipe())
        await engine.start()
        try:
            return await use(engine)
        finally:
            await engine.stop()

    return asyncio.run(story())


def full_prefix_logprobs(seed: int, completion: Completion, temperature: float) -> Any:
    """Log-probs (T,) of the completion's tokens by one forward pass over prompt and answer, nothing cached."""
    ids = torch.as_tensor(np.concatenate([PROMPT, completion.tokens]), dtype=torch.long)
    with torch.no_grad():
        logits = make_weights(seed)(ids[None], use_cache=False).logits[0, len(PROMPT) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, ids[len(PROMPT) :, None])[:, 0].numpy()


def same(one: list[Completion], other: list[Completion]) -> bool:
    return all(
        np.array_equal(a.tokens, b.tokens) and np.array_equal(a.logprobs, b.logprobs) and a.spans == b.spans
        for a, b in zip(one, other, strict=True)
    )


def test_a_group_depends_on_its_seed_alone_whatever_else_runs(versions: list[Path]) -> None:
    async def story(engine: TransformersEngine) -> None:
        await engine.refresh(versions[1], 1)
        alone = await engine.sample(PROMPT, 7, "a")
        crowded = await asyncio.gather(*(engine.sample(PROMPT, seed, f"b{seed}") for seed in (3, 7, 11)))
        assert same(alone, crowded[1])
        assert not same(alone, crowded[0])
        assert len({tuple(c.tokens) for c in alone}) == 4, "the members of a group differ"

    with_engine(versions[0], story)


def test_two_engines_agree_to_the_bit(versions: list[Path]) -> None:
    async def story(engine: TransformersEngine) -> list[Completion]:
        await engine.refresh(versions[1], 1)
        return await engine.sample(PROMPT, 7, "a")

    assert same(with_engine(versions[0], story), with_engine(versions[0], story))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_recorded_logprobs_are_those_of_a_full_forward_pass(versions: list[Path], temperature: float) -> None:
    async def story(engine: TransformersEngine) -> list[Completion]:
        await engine.refresh(versions[1], 1)
        return [c for seed in range(5) for c in await engine.sample(PROMPT, seed, f"{seed}")]

    for completion in with_engine(versions[0], story, make_recipe(temperature)):
        expected = full_prefix_logprobs(1, completion, temperature)
        assert completion.logprobs.dtype == np.float32
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def test_samples_follow_the_model_s_distribution(versions: list[Path]) -> None:
    """First tokens of many groups against the exact probabilities: a chi-square that a wrong temperature fails."""
    temperature, groups = 0.7, 500

    async def story(engine: TransformersEngine) -> list[int]:
        await engine.refresh(versions[1], 1)
        drawn = [await engine.sample(PROMPT, seed, f"{seed}") for seed in range(groups)]
        return [int(c.tokens[0]) for group in drawn for c in group]

    recipe = make_recipe(temperature).model_copy(deep=True)
    one_token = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"max_tokens": 1})})
    counts = np.bincount(with_engine(versions[0], story, one_token), minlength=300)
    with torch.no_grad():
        logits = make_weights(1)(torch.as_tensor(PROMPT, dtype=torch.long)[None]).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1).numpy() * groups * 4
    common = expected >= 5
    chi2 = ((counts[common] - expected[common]) ** 2 / expected[common]).sum()
    degrees = int(common.sum()) - 1
    assert degrees > 10
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)


def test_an_answer_ends_with_its_end_token_or_is_marked_as_cut(versions: list[Path]) -> None:
    async def story(engine: TransformersEngine) -> list[Completion]:
        await engine.refresh(versions[1], 1)
        return [c for seed in range(20) for c in await engine.sample(PROMPT, seed, f"{seed}")]

    completions = with_engine(versions[0], story)
    for completion in completions:
        ends = np.isin(completion.tokens, EOS)
        assert not ends[:-1].any(), "nothing follows an end token"
        assert completion.truncated == (not ends[-1])
        assert len(completion.tokens) == len(completion.logprobs) == completion.spans[-1].end
        assert completion.tokens.dtype == np.int32
        assert not completion.truncated or len(completion.tokens) == 24
    assert {c.truncated for c in completions} == {True, False}, "the test has seen both kinds"


def test_refresh_replaces_every_weight_and_stamps_the_version(versions: list[Path]) -> None:
    async def story(engine: TransformersEngine) -> None:
        assert engine.policy_version == -1
        for version in (1, 2):
            await engine.refresh(versions[version], version)
            assert engine.policy_version == version
            for completion in await engine.sample(PROMPT, 3, "a"):
                assert [(s.policy_version, s.start, s.end) for s in completion.spans] == [
                    (version, 0, len(completion.tokens))
                ]
                np.testing.assert_allclose(
                    completion.logprobs, full_prefix_logprobs(version, completion, 1.0), atol=1e-4
                )

    with_engine(versions[0], story)


def test_a_refresh_waits_for_the_group_before_it(versions: list[Path]) -> None:
    async def story(engine: TransformersEngine) -> None:
        await engine.refresh(versions[1], 1)
        before, _, after = await asyncio.gather(
            engine.sample(PROMPT, 3, "a"), engine.refresh(versions[2], 2), engine.sample(PROMPT, 3, "b")
        )
        for version, group in ((1, before), (2, after)):
            for completion in group:
                assert {span.policy_version for span in completion.spans} == {version}
                expected = full_prefix_logprobs(version, completion, 1.0)
                np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)

    with_engine(versions[0], story)


def spoil_missing(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    del folder, tensors


def spoil_truncated(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def spoil_a_name(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")


def spoil_a_shape(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors")


def spoil_by_a_stranger(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "spoil",
    [spoil_missing, spoil_truncated, spoil_a_name, spoil_a_shape, spoil_by_a_stranger],
    ids=lambda f: f.__name__,
)
def test_a_broken_policy_is_refused_whole_and_the_old_weights_go_on(
    versions: list[Path], tmp_path: Path, spoil: Callable[[Path, dict[str, torch.Tensor]], None]
) -> None:
    spoil(tmp_path, load_file(versions[2] / "model.safetensors"))

    async def story(engine: TransformersEngine) -> None:
        await engine.refresh(versions[1], 1)
        before = await engine.sample(PROMPT, 3, "a")
        with pytest.raises((OSError, ValueError)):
            await engine.refresh(tmp_path, 2)
        assert engine.policy_version == 1
        assert same(before, await engine.sample(PROMPT, 3, "b"))

    with_engine(versions[0], story)


def test_a_cancelled_group_ends_at_its_next_token_and_disturbs_nobody(versions: list[Path]) -> None:
    async def story(engine: TransformersEngine) -> None:
        await engine.refresh(versions[1], 1)
        undisturbed = await engine.sample(PROMPT, 3, "a")
        calls, third, cancelled = itertools.count(1), threading.Event(), threading.Event()

        def wait_in_the_third_call(*_: object) -> None:
            if next(calls) == 3:
                third.set()
                assert cancelled.wait(10)

        hook = engine._model.register_forward_hook(wait_in_the_third_call)
        tasks = [asyncio.create_task(engine.sample(PROMPT, seed, f"{seed}")) for seed in (3, 4)]
        assert await asyncio.to_thread(third.wait, 10)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled.set()
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        await engine.refresh(versions[1], 1)  # behind whatever the worker thread still does
        hook.remove()
        assert next(calls) == 4, "no forward pass after the one that was running"
        assert same(undisturbed, await engine.sample(PROMPT, 3, "b"))

    with_engine(versions[0], story)


def test_sampling_before_the_first_refresh_is_an_error(versions: list[Path]) -> None:
    async def story(engine: TransformersEngine) -> None:
        with pytest.raises(RuntimeError, match="holds no policy version"):
            await engine.sample(PROMPT, 3, "a")

    with_engine(versions[0], story)


def test_the_end_token_of_the_configuration_serves_where_there_is_no_generation_config(tmp_path: Path) -> None:
    model = make_weights(0)
    model.config.eos_token_id = 299
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()

    async def story(engine: TransformersEngine) -> list[Completion]:
        await engine.refresh(tmp_path, 0)
        return [c for seed in range(40) for c in await engine.sample(PROMPT, seed, f"{seed}")]

    completions = with_engine(tmp_path, story)
    assert {int(c.tokens[-1]) for c in completions if not c.truncated} <= {299}
    assert not any((c.tokens[:-1] == 299).any() for c in completions)


def start(model: Path, recipe: GeneratorRecipe) -> None:
    asyncio.run(TransformersEngine(str(model), recipe).start())


def test_a_model_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no model in") as refused:
        start(tmp_path / "nowhere", make_recipe())
    assert "\n" not in str(refused.value)


def test_a_model_without_weights_is_refused(versions: list[Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((versions[0] / "config.json").read_bytes())
    with pytest.raises(Refused, match="no usable weights"):
        start(tmp_path, make_recipe())
