"""The policy model: log-probs in fp32 whatever the body ran in, and folders that any library can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from broker.errors import Refused
from consumer.model import PolicyModel
from consumer.pack import MicroBatch, pack
from tests.consumer import oracle
from tests.consumer.groups import gpt2, llama, policy_model, random_groups, recipe

GROUPS = random_groups(5)
BF16 = recipe({"autocast": "bfloat16"})


def whole_batch() -> MicroBatch:
    (batch,) = pack(GROUPS, 10**6, "padded")
    return batch


def in_order(batch: MicroBatch, nested: oracle.Logprobs) -> list[float]:
    return [nested[g][i][t] for g, i, t in batch.order.tolist()]


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


def test_gradient_checkpointing_changes_memory_and_nothing_else() -> None:
    plain, thrifty = llama(), llama()
    for module, of in ((plain, recipe()), (thrifty, recipe({"gradient_checkpointing": True}))):
        policy_model(module, of).logprobs(whole_batch(), 1.0)[0].sum().backward()
    pairs = list(zip(plain.parameters(), thrifty.parameters(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


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
