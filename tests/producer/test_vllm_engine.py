"""I4, on a real vLLM: every token's recorded log-prob is that of the version in its span, whatever was replaced when.

vLLM starts once for the module (it takes half a minute); each test gets an engine of its own around it, at version 0.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from broker.errors import Refused
from broker.schema import Rollout, RolloutGroup
from consumer.model import PolicyModel
from consumer.pack import pack
from consumer.sheet import Sheet
from monitoring.catalogue import VLLM
from monitoring.metrics import GeneratorMetrics
from producer.engine import Completion
from producer.settings import GeneratorRecipe
from producer.vllm_engine import VllmEngine
from producer.vllm_outputs import SpanSource
from producer.worker_extension import PolicyExtension
from tests.consumer.groups import policy_model, recipe

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]
EOS = list(range(496, 512))
LONG = 400  # tokens of an answer that does not end: long enough to refresh twice in the middle of it
TOLERANCE = 1e-4
rng = np.random.default_rng(0)
PROMPT = rng.integers(0, 496, 12).astype(np.int32)
LONG_PROMPT = rng.integers(0, 496, 300).astype(np.int32)  # more than two blocks of the prefix cache
TERSE = 9  # a version whose distribution is uniform, so that one token in 32 is an end token


def make_recipe(temperature: float = 0.7, max_tokens: int = LONG, **generator: Any) -> GeneratorRecipe:
    settings = {"slots": 4, "kv_cache_gib": 0.25, "enforce_eager": True, "threads": 1}
    return GeneratorRecipe.model_validate(
        {
            "run": {"name": "test", "model": "unused", "steps": 1},
            "sampling": {
                "group_size": 4,
                "temperature": temperature,
                "max_tokens": max_tokens,
                "max_prompt_tokens": 1024 - max_tokens,
            },
            "generator": settings | generator,
            "task": {"name": "addition"},
        }
    )


@functools.cache
def make_weights(version: int) -> LlamaForCausalLM:
    """Tied, and far from uniform, except TERSE; end tokens have zero embeddings, hence next to no probability."""
    torch.manual_seed(version)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=1e-4 if version == TERSE else 0.5)
        model.model.embed_tokens.weight[EOS[0] :] *= 0.0 if version != TERSE else 1.0
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.8, 1.2)
    return model


def published(version: int) -> dict[str, torch.Tensor]:
    """What a publisher writes of a version: the tied head is left out."""
    return {name: tensor for name, tensor in make_weights(version).state_dict().items() if name != "lm_head.weight"}


class AuditedWorker(PolicyExtension):
    """The extension under test with a window on the weights, and with faults that a folder's marker files switch on."""

    audited_folder = Path()

    def policy_tensors(self, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        self.audited_folder = folder
        for number, item in enumerate(super().policy_tensors(folder)):
            if number == 7 and (folder / "break-off").exists():
                raise OSError("the disk is gone")
            if number == 7 and (folder / "hang").exists():
                (folder / "begun").touch()
                time.sleep(float((folder / "hang").read_text()))  # the fault itself, not a way to wait for something
            yield item

    def exchange_policy(self) -> None:
        super().exchange_policy()
        if (self.audited_folder / "fail-late").exists():
            raise OSError("the bus is gone")

    def spare_unfit(self, reason: str) -> str:
        """Why versions are not prepared beside the sampling, until now; from now on `reason`."""
        assert self.policy_spare is not None
        before, self.policy_spare.unfit = self.policy_spare.unfit, reason
        return before

    def weight_differences(self, folder: str) -> dict[str, float]:
        """Largest difference of every module's effective weight, as it multiplies, to the folder's tensors."""
        tensors = load_file(Path(folder) / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        worker: Any = self
        found = {}
        for name, module in worker.get_model().named_modules():
            parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
            leaf = name.rsplit(".", 1)[-1]
            names = [name.replace(leaf, part) + ".weight" for part in parts.get(leaf, (leaf,))]
            if any(each not in tensors for each in names):
                continue
            expected = torch.cat([tensors[each] for each in names])
            if "norm" in leaf or leaf == "embed_tokens":
                effective = module.weight.data
            else:  # CPU kernels keep packed copies and free the plain weight: multiply by one to see what they hold
                effective = module.quant_method.apply(module, torch.eye(expected.shape[1])).T
            found[name] = float((effective[: len(expected)] - expected).abs().max())
        return found


class AuditedEngine(VllmEngine):
    extension = f"{__name__}.AuditedWorker"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int | str, Path]:
    root = tmp_path_factory.mktemp("policies")
    make_weights(100).save_pretrained(root / "model")
    GenerationConfig(eos_token_id=EOS).save_pretrained(root / "model")
    for version in (0, 1, 2, TERSE):
        (root / f"v{version}").mkdir()
        save_file(published(version), root / f"v{version}" / "model.safetensors")
    return {"model": root / "model"} | {version: root / f"v{version}" for version in (0, 1, 2, TERSE)}


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    """All tests share one event loop, because vLLM's front end lives in the loop that started it."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def started(run: Run[Any], folders: dict[int | str, Path]) -> Iterator[VllmEngine]:
    engine = AuditedEngine(str(folders["model"]), make_recipe())
    run(engine.start())
    yield engine
    children = [child for child in psutil.Process().children(recursive=True) if "VLLM" in child.name()]
    assert children
    run(engine.stop())
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "stop ends every child process"


@pytest.fixture
def make_engine(
    run: Run[Any], started: VllmEngine, folders: dict[int | str, Path]
) -> Iterator[Callable[..., VllmEngine]]:
    def make(spans: SpanSource | None = None, **recipe: Any) -> VllmEngine:
        engine = AuditedEngine(
            str(folders["model"]), make_recipe(**recipe), deadline=20.0, spans=spans or started._spans
        )
        engine._llm, engine._eos = started._llm, started._eos
        run(engine.refresh(folders[0], 0))
        return engine

    yield make
    assert not started._llm.output_processor.has_unfinished_requests()
    assert not run(started._llm.is_paused())


@pytest.fixture(params=["prepared", "reloaded"])
def way(request: pytest.FixtureRequest, run: Run[Any], make_engine: Callable[..., VllmEngine]) -> Iterator[str]:
    """Both ways in which weights come: read while the engine goes on and exchanged, or read while it stands still."""
    llm = make_engine()._llm
    [before] = run(llm.collective_rpc("spare_unfit", args=("" if request.param == "prepared" else "as a test",)))
    assert before == "", "this model is one that can be prepared"
    yield request.param
    run(llm.collective_rpc("spare_unfit", args=("",)))


@pytest.fixture
def engine(make_engine: Callable[..., VllmEngine]) -> VllmEngine:
    return make_engine()


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)


def progress(engine: VllmEngine) -> int:
    """Tokens of the answer that lags behind most; 0 before all have begun."""
    states = list(engine._llm.output_processor.request_states.values())
    return min((state.detokenizer.num_output_tokens() for state in states), default=0)


def reference(version: int, prompt: npt.NDArray[np.int32], completion: Completion, temperature: float) -> Any:
    """Log-probs (T,) of the answer's tokens under `version`, by one float32 forward pass of Hugging Face's model."""
    ids = torch.as_tensor(np.concatenate([prompt, completion.tokens]), dtype=torch.long)
    with torch.no_grad():
        logits = make_weights(version)(ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, ids[len(prompt) :, None])[:, 0].numpy()


def worst_errors(
    group: list[Completion], prompt: npt.NDArray[np.int32] = PROMPT, temperature: float = 0.7
) -> dict[int, float]:
    """Largest difference of recorded log-probs to `reference`, by the version of the span."""
    worst: dict[int, float] = {}
    for completion in group:
        at = 0
        for span in completion.spans:
            assert span.start == at < span.end
            at = span.end
            expected = reference(span.policy_version, prompt, completion, temperature)[span.start : span.end]
            error = float(np.abs(completion.logprobs[span.start : span.end] - expected).max())
            worst[span.policy_version] = max(worst.get(span.policy_version, 0.0), error)
        assert at == len(completion.tokens) == len(completion.logprobs)
        assert completion.tokens.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
    return worst


def learner_logprobs(group: list[Completion], temperature: float) -> tuple[Any, Any]:
    """Log-probs (N,) as they were recorded, and as the learner finds them for the weights of version 0."""
    rollouts = tuple(Rollout(c.tokens, c.logprobs, c.spans, 0.0) for c in group)
    groups = [RolloutGroup("t0", "train", 0, PROMPT, rollouts)]
    sheet, model = Sheet.of(groups), policy_model(make_weights(0))
    found = np.zeros(len(sheet), np.float32)
    for batch in pack(groups, sheet.starts.tolist(), 256):
        with torch.no_grad():
            found[batch.tokens.numpy()] = model.logprobs(batch, temperature)[0].numpy()
    return sheet.behaviour.numpy(), found


def versions_of(completion: Completion) -> list[int]:
    return [span.policy_version for span in completion.spans]


def assert_holds(run: Run[Any], engine: VllmEngine, folder: Path) -> None:
    [differences] = run(engine._llm.collective_rpc("weight_differences", args=(str(folder),)))
    assert len(differences) == 2 * 6 + 3  # two layers; the embedding, the last norm and the head
    assert max(differences.values()) < 1e-6, differences


@pytest.mark.engine
def test_each_token_is_the_version_s_of_its_span_across_two_refreshes_in_flight(
    run: Run[Any], engine: VllmEngine, folders: dict[int | str, Path], way: str
) -> None:
    assert [
        abs(make_weights(a).lm_head.weight - make_weights(b).lm_head.weight).max() > 0.1 for a, b in ((0, 1), (1, 2))
    ]

    async def story() -> list[list[Completion]]:
        groups = [asyncio.create_task(engine.sample(prompt, seed, f"g{seed}")) for seed, prompt in enumerate(prompts)]
        for version, tokens in ((1, 40), (2, 150)):
            await until(lambda: progress(engine) >= tokens)
            began, still = time.perf_counter(), engine.still_seconds
            await engine.refresh(folders[version], version)
            assert 0.0 < engine.still_seconds - still < time.perf_counter() - began
        return await asyncio.gather(*groups)

    prompts = [PROMPT, LONG_PROMPT]
    for prompt, group in zip(prompts, run(story()), strict=True):
        assert [versions_of(completion) for completion in group] == [[0, 1, 2]] * 4
        errors = worst_errors(group, prompt)
        print("largest log-prob errors by version:", errors)
        assert max(errors.values()) < TOLERANCE
        assert len({completion.tokens.tobytes() for completion in group}) == 4
        assert all(completion.truncated and len(completion.tokens) == LONG for completion in group)


@pytest.mark.engine
def test_a_refresh_reaches_every_weight_and_the_tied_head(
    run: Run[Any], engine: VllmEngine, folders: dict[int | str, Path], way: str
) -> None:
    for version in (1, 2, 0):
        run(engine.refresh(folders[version], version))
        assert engine.policy_version == version
        assert_holds(run, engine, folders[version])


@pytest.mark.engine
def test_an_adapter_is_laid_onto_the_model_that_the_engine_was_started_with(
    run: Run[Any], engine: VllmEngine, folders: dict[int | str, Path], tmp_path: Path, way: str
) -> None:
    of = recipe({"lora_rank": 4, "lora_publish": "adapter"}).learner
    base, module = Path(folders["model"]), copy.deepcopy(make_weights(100))
    learner = PolicyModel(module, of, torch.float32, torch.device("cpu"), base=base)
    for parameter in learner.parameters:
        torch.nn.init.normal_(parameter, std=0.05)
    learner.write(tmp_path / "adapter", learner.snapshot())
    learner.write(tmp_path / "merged", learner.snapshot("whole"))
    run(engine.refresh(tmp_path / "adapter", 5))
    assert_holds(run, engine, tmp_path / "merged")
    assert not any(path.name == "model.safetensors" for path in (tmp_path / "adapter").iterdir())
    run(engine.refresh(Path(folders[1]), 6))
    assert_holds(run, engine, Path(folders[1]))


@pytest.mark.engine
def test_prefixes_cached_under_old_weights_are_forgotten(
    run: Run[Any], make_engine: Callable[..., VllmEngine], folders: dict[int | str, Path]
) -> None:
    engine = make_engine(max_tokens=8)
    for version in (0, 1):
        run(engine.refresh(folders[version], version))
        for attempt in range(2):  # the second one meets a warm cache
            group = run(engine.sample(LONG_PROMPT, 5, f"{version}.{attempt}"))
            assert worst_errors(group, LONG_PROMPT)[version] < TOLERANCE


@pytest.mark.engine
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_logprobs_are_those_under_the_sampling_temperature_and_the_learner_s(
    run: Run[Any], make_engine: Callable[..., VllmEngine], temperature: float
) -> None:
    engine = make_engine(temperature=temperature, max_tokens=60)
    group = run(engine.sample(PROMPT, 5, "a"))
    assert worst_errors(group, temperature=temperature)[0] < TOLERANCE
    assert worst_errors(group, temperature=2.0 - temperature if temperature != 1.0 else 0.7)[0] > 0.1, "others differ"
    recorded, found = learner_logprobs(group, temperature)
    assert np.abs(recorded - found).max() < TOLERANCE


@pytest.mark.engine
def test_an_answer_ends_with_its_end_token_or_is_marked_as_cut(
    run: Run[Any], make_engine: Callable[..., VllmEngine], folders: dict[int | str, Path]
) -> None:
    engine = make_engine(max_tokens=40)
    run(engine.refresh(folders[TERSE], TERSE))

    async def story() -> list[list[Completion]]:
        return await asyncio.gather(*(engine.sample(PROMPT, seed, f"{seed}") for seed in range(8)))

    completions = list(itertools.chain.from_iterable(run(story())))
    for completion in completions:
        ends = np.isin(completion.tokens, EOS)
        assert not ends[:-1].any(), "nothing follows an end token"
        assert completion.truncated == (not ends[-1])
        assert not completion.truncated or len(completion.tokens) == 40
    assert {completion.truncated for completion in completions} == {True, False}, "the test has seen both kinds"
    assert worst_errors(completions)[TERSE] < TOLERANCE


@pytest.mark.engine
def test_long_prompts_in_every_slot_at_once(run: Run[Any], make_engine: Callable[..., VllmEngine]) -> None:
    """Left to itself vLLM computes some in parts, and on a CPU it dies of a seeded request whose prompt it parts."""
    engine = make_engine(max_tokens=2)
    prompts = [np.roll(np.tile(LONG_PROMPT, 3), shift) for shift in range(engine.slots)]

    async def story() -> list[list[Completion]]:
        return await asyncio.gather(*(engine.sample(p, seed, f"full{seed}") for seed, p in enumerate(prompts)))

    for prompt, group in zip(prompts, run(story()), strict=True):
        assert max(worst_errors(group, prompt).values()) < TOLERANCE


@pytest.mark.engine
def test_neighbouring_seeds_share_no_answers(run: Run[Any], make_engine: Callable[..., VllmEngine]) -> None:
    engine = make_engine(max_tokens=30)
    answers = [c.tokens.tobytes() for seed in (5, 6, 7) for c in run(engine.sample(PROMPT, seed, f"{seed}"))]
    assert len(set(answers)) == 12


def spoil_missing(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    del folder, tensors


def spoil_truncated(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def spoil_a_shape(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(64)
    save_file(tensors, folder / "model.safetensors")


def spoil_a_name(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def break_off(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")
    (folder / "break-off").touch()


def fail_late(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")
    (folder / "fail-late").touch()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (spoil_missing, "no \\*.safetensors"),
        (spoil_truncated, "not a complete safetensors file"),
        (spoil_a_shape, "the weights have a misshapen model.norm.weight"),
        (spoil_a_name, "the weights lack model.layers.1.mlp.down_proj.weight"),
        (break_off, "vLLM did not take .*the disk is gone"),
        (fail_late, "vLLM did not take .*the bus is gone"),
    ],
    ids=["missing", "truncated", "shape", "name", "break-off", "late"],
)
def test_a_failed_refresh_leaves_the_old_weights_serving(
    run: Run[Any],
    make_engine: Callable[..., VllmEngine],
    folders: dict[int | str, Path],
    tmp_path: Path,
    spoil: Callable[[Path, dict[str, torch.Tensor]], None],
    complaint: str,
) -> None:
    engine = make_engine(max_tokens=150)
    spoil(tmp_path, published(1))

    async def story() -> list[Completion]:
        in_flight = asyncio.create_task(engine.sample(PROMPT, 5, "a"))
        await until(lambda: progress(engine) >= 20)
        with pytest.raises((OSError, ValueError), match=complaint):
            await engine.refresh(tmp_path, 1)
        return await in_flight + await engine.sample(PROMPT, 6, "b")

    group = run(story())
    assert engine.policy_version == 0
    assert [versions_of(completion) for completion in group] == [[0]] * 8
    assert worst_errors(group)[0] < TOLERANCE
    assert_holds(run, engine, folders[0])
    run(engine.refresh(folders[2], 2))  # and the next one is taken as if nothing had happened
    assert_holds(run, engine, folders[2])


@pytest.mark.engine
def test_a_reload_that_breaks_off_leaves_the_old_weights_serving(
    run: Run[Any], make_engine: Callable[..., VllmEngine], folders: dict[int | str, Path], tmp_path: Path, way: str
) -> None:
    """Whichever way it was taken: half of the model is never new."""
    engine = make_engine(max_tokens=20)
    break_off(tmp_path, published(1))
    with pytest.raises(ValueError, match="the disk is gone"):
        run(engine.refresh(tmp_path, 1))
    assert worst_errors(run(engine.sample(PROMPT, 5, "a"))) == pytest.approx({0: 0.0}, abs=TOLERANCE)
    assert_holds(run, engine, folders[0])
    run(engine.refresh(folders[2], 2))
    assert_holds(run, engine, folders[2])


@pytest.mark.engine
def test_the_first_version_of_all_must_be_complete_too(
    run: Run[Any], started: VllmEngine, folders: dict[int | str, Path], tmp_path: Path
) -> None:
    """Before any version has served there is nothing to compare a header with: vLLM's own account decides."""
    engine = AuditedEngine(str(folders["model"]), make_recipe(), spans="reported")
    engine._llm, engine._eos = started._llm, started._eos
    spoil_a_name(tmp_path, published(1))
    with pytest.raises(ValueError, match=r"no weights for model\.layers\.1\.mlp\.down_proj"):
        run(engine.refresh(tmp_path, 1))
    assert engine.policy_version == -1
    assert_holds(run, engine, folders["model"])
    with pytest.raises(RuntimeError, match="holds no policy version"):
        run(engine.sample(PROMPT, 1, "a"))


@pytest.mark.engine
def test_a_reload_that_takes_too_long_is_given_up(
    run: Run[Any], make_engine: Callable[..., VllmEngine], folders: dict[int | str, Path], tmp_path: Path, way: str
) -> None:
    engine = make_engine(max_tokens=20)
    save_file(published(1), tmp_path / "model.safetensors")
    (tmp_path / "hang").write_text("3")
    engine._deadline = 2.0
    with pytest.raises(TimeoutError):
        run(engine.refresh(tmp_path, 1))
    assert worst_errors(run(engine.sample(PROMPT, 5, "a"))) == pytest.approx({0: 0.0}, abs=TOLERANCE)
    assert_holds(run, engine, folders[0])


@pytest.mark.engine
def test_an_engine_that_cannot_go_back_says_so_and_samples_no_more(
    run: Run[Any], make_engine: Callable[..., VllmEngine], folders: dict[int | str, Path], tmp_path: Path
) -> None:
    engine = make_engine(max_tokens=20)
    fail_late(tmp_path, published(1))
    engine._folder = tmp_path / "pruned"
    with pytest.raises(RuntimeError, match="could not be put back"):
        run(engine.refresh(tmp_path, 1))
    with pytest.raises(RuntimeError, match="holds no policy version"):
        run(engine.sample(PROMPT, 1, "a"))
    assert run(engine._llm.is_paused()), "nothing is sampled from weights of no version"
    run(engine._llm.resume_generation())  # for the tests that share this vLLM
    make_engine()


@pytest.mark.engine
def test_a_refresh_that_is_cancelled_puts_the_old_weights_back(
    run: Run[Any], make_engine: Callable[..., VllmEngine], folders: dict[int | str, Path], tmp_path: Path, way: str
) -> None:
    engine = make_engine(max_tokens=20)
    save_file(published(1), tmp_path / "model.safetensors")
    (tmp_path / "hang").write_text("1")

    async def story() -> None:
        refresh = asyncio.create_task(engine.refresh(tmp_path, 1))
        await until((tmp_path / "begun").exists)  # half of the weights are in
        refresh.cancel()
        with pytest.raises(asyncio.CancelledError):
            await refresh

    run(story())
    assert engine.policy_version == 0
    assert_holds(run, engine, folders[0])


@pytest.mark.engine
def test_below_0_32_running_groups_finish_before_the_version_changes(
    run: Run[Any], make_engine: Callable[..., VllmEngine], folders: dict[int | str, Path]
) -> None:
    engine = make_engine(spans="drained", max_tokens=150)
    finished: list[str] = []

    async def note(name: str, work: Coroutine[Any, Any, T]) -> T:
        result = await work
        finished.append(name)
        return result

    async def story() -> list[list[Completion]]:
        running = asyncio.create_task(note("running", engine.sample(PROMPT, 1, "a")))
        await until(lambda: progress(engine) >= 20)
        refresh = asyncio.create_task(note("refresh", engine.refresh(folders[1], 1)))
        await until(lambda: not engine._gate._open.is_set())
        waiting = asyncio.create_task(note("waiting", engine.sample(PROMPT, 2, "b")))
        await refresh
        return [await running, await waiting]

    before, after = run(story())
    assert finished == ["running", "refresh", "waiting"]
    assert [versions_of(completion) for completion in before] == [[0]] * 4
    assert [versions_of(completion) for completion in after] == [[1]] * 4
    assert max((worst_errors(before) | worst_errors(after)).values()) < TOLERANCE


@pytest.mark.engine
def test_conservative_spans_name_the_oldest_version(
    run: Run[Any], make_engine: Callable[..., VllmEngine], folders: dict[int | str, Path]
) -> None:
    engine = make_engine(spans="conservative", max_tokens=150)

    async def story() -> list[Completion]:
        running = asyncio.create_task(engine.sample(PROMPT, 1, "a"))
        await until(lambda: progress(engine) >= 20)
        await engine.refresh(folders[1], 1)
        assert not running.done(), "it did not wait for the group"
        return await running

    group = run(story())
    assert [versions_of(completion) for completion in group] == [[0]] * 4
    assert worst_errors(group)[0] > 0.1, "which is why it is not the default"


@pytest.mark.engine
def test_this_vllm_reports_spans_itself(started: VllmEngine) -> None:
    assert started._spans == "reported"


@pytest.mark.engine
def test_a_cancelled_sample_leaves_vllm_and_the_others_alone(
    run: Run[Any], make_engine: Callable[..., VllmEngine]
) -> None:
    engine = make_engine(max_tokens=150)

    async def story() -> list[Completion]:
        doomed, other = (asyncio.create_task(engine.sample(PROMPT, seed, "same id")) for seed in (1, 2))
        await until(lambda: progress(engine) >= 20)
        assert engine._llm.get_num_unfinished_requests() == 8
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        assert engine._llm.get_num_unfinished_requests() == 4
        return await other

    assert worst_errors(run(story()))[0] < TOLERANCE


# -- what needs no engine -----------------------------------------------------------------------------------------


def refusal(model: Path, recipe: GeneratorRecipe) -> str:
    with pytest.raises(Refused) as refused:
        asyncio.run(VllmEngine(str(model), recipe).start())
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no model in" in refusal(tmp_path / "nowhere", make_recipe())


def test_a_model_without_weights_is_refused(folders: dict[int | str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folders["model"] / "config.json").read_bytes())
    assert "no usable weights" in refusal(tmp_path, make_recipe())


def test_temperatures_that_vllm_would_raise_in_silence_are_refused(folders: dict[int | str, Path]) -> None:
    assert "below temperature 0.01" in refusal(folders["model"], make_recipe(temperature=0.005))


def test_a_lost_notice_costs_a_moment_and_not_a_recheck_interval() -> None:
    from producer.quiet_executor import LOOK_AGAIN_MS, _briefly

    waited: list[int | None] = []
    wait = _briefly(waited.append)
    wait(timeout_ms=5000)
    wait(timeout_ms=3)
    wait()
    assert waited == [LOOK_AGAIN_MS, 3, LOOK_AGAIN_MS]


def test_a_machine_without_vllm_is_told_what_to_do(
    folders: dict[int | str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    message = refusal(folders["model"], make_recipe())
    assert "vLLM cannot be imported" in message
    assert "generator.engine = 'transformers'" in message


def test_a_generator_shows_what_vllm_counts_and_the_names_that_rules_may_use_are_among_it(
    run: Run[Any], engine: VllmEngine
) -> None:
    metrics = GeneratorMetrics()
    metrics.show_vllm()
    run(engine.sample(PROMPT, 1, "counted"))
    shown = {s.name: s for family in metrics.registry.collect() for s in family.samples if s.name.startswith("vllm:")}
    for one in VLLM:
        assert set(one.labels) <= shown[one.name].labels.keys(), one.name
    assert shown["vllm:generation_tokens_total"].value >= 4, "a group of four"
    assert shown["vllm:num_requests_running"].value == 0, "nothing runs now"
