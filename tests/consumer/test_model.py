"""The policy model: log-probs in fp32 whatever the body ran in, and folders that any library can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from broker.errors import Refused
from consumer.compiling import why_not
from consumer.model import PolicyModel
from consumer.pack import Layout, MicroBatch, pack
from consumer.sheet import Sheet
from tests.consumer import oracle
from tests.consumer.allocations import Allocations
from tests.consumer.groups import VOCABULARY, gpt2, llama, policy_model, random_groups, recipe

GROUPS = random_groups(5)
BF16 = recipe({"autocast": "bfloat16"})


def whole_batch(layout: Layout = "padded") -> MicroBatch:
    (batch,) = pack(GROUPS, Sheet.of(GROUPS).starts.tolist(), 10**6, layout)
    return batch


def in_order(batch: MicroBatch, nested: oracle.Logprobs) -> list[float]:
    flat = [value for group in nested for rollout in group for value in rollout]
    return [flat[row] for row in batch.tokens.tolist()]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_log_probs_are_taken_under_the_temperature_that_sampled(temperature: float) -> None:
    module, batch = gpt2(), whole_batch()
    logprobs, entropy = policy_model(module).logprobs(batch, temperature)
    assert logprobs.tolist() == pytest.approx(
        in_order(batch, oracle.logprobs_of(module, GROUPS, temperature)), rel=1e-9
    )
    logits = module(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.predictor]
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    assert entropy.tolist() == pytest.approx(distribution.entropy().tolist(), rel=1e-9)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_under_autocast_the_body_runs_in_bfloat16_and_log_probs_come_out_in_float32() -> None:
    module, batch = llama(), whole_batch()
    exact = policy_model(module).logprobs(batch, 1.0)[0]
    seen: dict[str, torch.dtype] = {}
    hook = module.model.layers[0].mlp.down_proj.register_forward_hook(lambda *io: seen.update(body=io[2].dtype))
    rounded = policy_model(module, BF16).logprobs(batch, 1.0)[0]
    hook.remove()
    assert seen["body"] == torch.bfloat16
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, atol=0.2)
    assert all(p.dtype == torch.float32 for p in module.parameters()), "the master weights stay in fp32"


def test_under_autocast_the_head_still_multiplies_in_float32() -> None:
    """Logits rounded to bfloat16 are wrong in the third digit, which no softmax in fp32 mends (ScaleRL 2025)."""
    module, batch = llama(), whole_batch()
    hidden: list[torch.Tensor] = []
    hook = module.model.norm.register_forward_hook(lambda *io: hidden.append(io[2]))
    logprobs = policy_model(module, BF16).logprobs(batch, 1.0)[0]
    hook.remove()
    chosen = hidden[0].flatten(0, 1)[batch.predictor].float()
    logits = chosen @ module.lm_head.weight.T
    expected = torch.log_softmax(logits, -1).gather(1, batch.targets[:, None])[:, 0]
    assert torch.allclose(logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "shared_prompt", "padded"])
def test_gradient_checkpointing_changes_memory_and_nothing_else(layout: Layout) -> None:
    plain, thrifty = llama(), llama()
    for module, of in ((plain, recipe()), (thrifty, recipe({"gradient_checkpointing": True}))):
        policy_model(module, of).logprobs(whole_batch(layout), 1.0)[0].sum().backward()
    pairs = list(zip(plain.parameters(), thrifty.parameters(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


def test_gradient_checkpointing_computes_every_layer_again() -> None:
    calls: list[int] = []
    model = policy_model(llama(), recipe({"gradient_checkpointing": True}))
    model.module.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.logprobs(whole_batch("packed"), 1.0)[0].sum().backward()
    assert len(calls) == 2


CPU = torch.device("cpu")


@pytest.mark.skipif(why_not(CPU) is not None, reason=str(why_not(CPU)))
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_compiled_layers_give_the_same_log_probs_and_gradients(checkpointing: bool) -> None:
    """One compilation serves all lengths: recompiling for each batch would be slower than not compiling."""
    torch.compiler.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = []
    for compiled in (False, True):
        of = recipe({"compile": compiled, "gradient_checkpointing": checkpointing})
        model, logprobs = policy_model(llama(), of), []
        for seed in (5, 6, 7):
            groups = random_groups(seed)
            for batch in pack(groups, Sheet.of(groups).starts.tolist(), 100, "packed"):
                logprobs.append(model.logprobs(batch, 1.0)[0])
                logprobs[-1].sum().backward()
        found.append(
            (torch.cat(logprobs), torch.cat([p.grad.flatten() for p in model.parameters if p.grad is not None]))
        )
    (eager, gradient), (compiled_ones, compiled_gradient) = found
    assert torch.allclose(eager, compiled_ones, rtol=1e-4, atol=1e-5)
    assert (gradient - compiled_gradient).abs().max() <= 1e-5 * gradient.abs().max()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert 0 < graphs <= 8, "a few of a layer and of the head, not some of each batch"


def test_a_machine_that_cannot_compile_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Refused, match=r"learner\.compile is set and there is no C\+\+ compiler"):
        policy_model(llama(), recipe({"compile": True}))


def test_the_logits_of_a_batch_never_exist_whole() -> None:
    module, batch = llama(), whole_batch("packed")
    with Allocations() as seen:
        policy_model(module, recipe({"logit_chunk": 7})).logprobs(batch, 1.0)[0].sum().backward()
    assert len(batch.targets) * VOCABULARY not in seen.sizes
    assert len(batch.targets) > 7


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_no_chunk_of_the_head_changes_a_gradient(chunk: int) -> None:
    found = []
    for size in (0, chunk):
        model = policy_model(gpt2(), recipe({"logit_chunk": size}))
        logprobs, entropy = model.logprobs(whole_batch("packed"), 0.7, entropy=True)
        (logprobs.sum() + entropy.sum()).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters if p.grad is not None]))
    assert (found[0] - found[1]).abs().max() <= 1e-12 * found[0].abs().max()


def test_dropout_is_off_since_the_policy_that_samples_has_none() -> None:
    module, batch = untied(), whole_batch("packed")
    model = policy_model(module)
    assert module.training
    assert torch.equal(model.logprobs(batch, 1.0)[0], model.logprobs(batch, 1.0)[0])


def test_all_that_is_learnt_is_in_one_module_whose_call_gives_the_log_probs() -> None:
    """Whoever shards or wraps the model wraps this one, once."""
    model, batch = policy_model(llama()), whole_batch("packed")
    assert list(model.net.parameters()) == list(model.module.parameters())
    assert torch.equal(model.net(batch, 1.0)[0], model.logprobs(batch, 1.0)[0])


# -- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tied"), [("float32", True), ("bfloat16", True), ("float32", False)])
def test_what_is_written_is_a_model_that_transformers_loads_whole(tmp_path: Path, dtype: str, tied: bool) -> None:
    of = recipe().model_copy(update={"policy": recipe().policy.model_copy(update={"dtype": dtype})})
    module = llama() if tied else untied()
    model = policy_model(module, of)
    model.write(tmp_path / "v1", model.snapshot())
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "v1", output_loading_info=True)
    again, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.dtype == getattr(torch, dtype)
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(again.dtype)), name
    stored = load_file(tmp_path / "v1" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied, "a tied head is stored once"


def untied() -> Any:
    config = GPT2Config(
        vocab_size=40, n_positions=96, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def test_a_written_folder_is_loaded_as_the_same_policy(tmp_path: Path) -> None:
    model = policy_model(llama())
    model.write(tmp_path, model.snapshot())
    again = PolicyModel.load(tmp_path, recipe(), recipe().learner)
    assert torch.equal(again.logprobs(whole_batch(), 1.0)[0], model.logprobs(whole_batch(), 1.0)[0])


def test_a_written_configuration_names_no_attention_of_ours(tmp_path: Path) -> None:
    model = policy_model(llama())
    model.write(tmp_path, model.snapshot())
    assert "headrace" not in (tmp_path / "config.json").read_text()


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot load a model from"):
        PolicyModel.load(tmp_path, recipe(), recipe().learner)


def test_weights_that_would_have_to_be_unpickled_are_refused(tmp_path: Path) -> None:
    module = llama()
    module.config.save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(Refused, match="cannot load a model from"):
        PolicyModel.load(tmp_path, recipe(), recipe().learner)


@pytest.mark.parametrize(("name", "value"), [("final_logit_softcapping", 30.0), ("logits_scaling", 8.0)])
def test_a_head_that_does_more_than_multiply_is_refused_by_name(name: str, value: float) -> None:
    module = llama()
    setattr(module.config, name, value)
    with pytest.raises(Refused, match=name):
        policy_model(module)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    of = recipe({"device": "cuda"})
    with pytest.raises(Refused, match=r"learner\.device"):
        PolicyModel.load(tmp_path, of, of.learner)
