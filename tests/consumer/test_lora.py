"""Adapters: trained alone, checkpointed alone, and the same policy whether they travel merged or by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from broker import adapter
from broker.errors import Refused
from consumer import checkpoint
from consumer.model import DTYPES, PolicyModel, Scorer
from consumer.objective.presets import PRESETS
from consumer.pack import pack
from consumer.settings import LearnerRecipe
from consumer.sheet import Sheet
from consumer.trainer import Trainer
from producer import weights
from tests.consumer.groups import gpt2, llama, policy_model, random_groups, recipe

GROUPS = random_groups(11)
LORA = {"lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-2}


def adapted(folder: Path, module: Any, of: LearnerRecipe) -> PolicyModel:
    """A model as it is loaded from `folder`, where its base lies."""
    folder.mkdir(exist_ok=True)
    save_file({n: p.detach().float().clone() for n, p in module.named_parameters()}, folder / "model.safetensors")
    return PolicyModel(module, of.learner, DTYPES[of.policy.dtype], torch.device("cpu"), seed=of.run.seed, base=folder)


def trained(folder: Path, module: Any, **learner: Any) -> Trainer:
    of = recipe({**LORA, **learner})
    trainer = Trainer(adapted(folder, module, of), of)
    for _ in range(2):
        trainer.train(GROUPS, 4)
    return trainer


def logprobs(model: Scorer) -> Tensor:
    """Of all tokens of the batch, (N,)."""
    sheet = Sheet.of(GROUPS)
    found = torch.zeros(len(sheet))
    for batch in pack(GROUPS, sheet.starts.tolist(), 64):
        with torch.no_grad():
            found[batch.tokens] = model.logprobs(batch, 1.0)[0]
    return found


def test_a_new_adapter_changes_nothing_and_only_it_is_trained(tmp_path: Path) -> None:
    before = {n: p.detach().clone() for n, p in llama().named_parameters()}
    of = recipe(LORA)
    model = adapted(tmp_path, llama(), of)
    assert torch.equal(logprobs(model), logprobs(policy_model(llama())))
    trainer = trained(tmp_path, llama())
    plain = {n.replace(".base_layer.", "."): p for n, p in trainer.model.module.named_parameters() if ".lora_" not in n}
    assert plain.keys() == before.keys()
    assert all(torch.equal(plain[n], before[n]) for n in before), "the base has not moved"
    assert all(".lora_" in n for n in trainer.state_dict() if n.startswith("model."))
    assert not torch.equal(logprobs(trainer.model), logprobs(policy_model(llama()))), "the policy has"
    assert torch.equal(logprobs(trainer.model.reference()), logprobs(policy_model(llama()))), "its reference has not"


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_by_the_generator_it_is_to_the_bit_what_the_learner_would_have_published(
    tmp_path: Path, build: Any, dtype: str
) -> None:
    trainer = trained(tmp_path / "base", build(), lora_publish="adapter")
    trainer.model.policy_dtype = DTYPES[dtype]
    merged, alone = trainer.snapshot("whole"), trainer.snapshot()
    assert sum(t.nbytes for t in alone.values()) < sum(t.nbytes for t in merged.values()) * 2
    assert all(".lora_" in name for name in alone)
    trainer.model.write(tmp_path / "v1", alone)
    found = dict(weights.tensors(tmp_path / "v1", tmp_path / "base"))
    assert found.keys() == merged.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in merged.items())
    assert found[next(iter(found))].dtype == DTYPES[dtype]


def test_the_merged_model_is_the_adapted_one(tmp_path: Path) -> None:
    trainer = trained(tmp_path, llama())
    plain = llama()
    plain.load_state_dict(trainer.snapshot("whole"), strict=False)
    assert torch.allclose(logprobs(policy_model(plain)), logprobs(trainer.model), atol=1e-5)


def test_peft_itself_loads_what_is_written(tmp_path: Path) -> None:
    from peft import PeftModel

    trainer = trained(tmp_path / "base", llama())
    trainer.model.write(tmp_path / "adapter", trainer.snapshot("adapter"))
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "adapter").merge_and_unload()
    assert torch.allclose(logprobs(policy_model(loaded)), logprobs(trainer.model), atol=1e-5)


def test_the_gradient_of_an_adapter_is_that_through_the_merged_weights(tmp_path: Path) -> None:
    """dL/dB = scale·dL/dW·Aᵀ, by a model that is trained whole."""
    of = recipe({**LORA, "learning_rate": 1e-30})
    trainer, whole = Trainer(adapted(tmp_path, gpt2(), of), of), Trainer(policy_model(gpt2()), recipe())
    seen: dict[str, Tensor] = {}
    for one in (trainer, whole):
        module = one.model.module
        one.optimizer.register_step_pre_hook(
            lambda *_, m=module: seen.update({n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None})
        )
        one.train(GROUPS, 4)
    layer = trainer.model.module.transformer.h[0].attn.c_attn
    expected = seen["transformer.h.0.attn.c_attn.weight"].T @ layer.lora_A["default"].weight.T * 2.0
    assert torch.allclose(seen["transformer.h.0.attn.c_attn.lora_B.default.weight"], expected, rtol=1e-9, atol=1e-14)


def test_a_run_that_was_broken_off_goes_on_to_the_bit_and_other_adapters_are_refused(tmp_path: Path) -> None:
    steady = trained(tmp_path / "base", llama())
    found = checkpoint.write(tmp_path / "checkpoints", 2, steady.state(), {}, keep=1)
    of = recipe(LORA)
    again = Trainer(adapted(tmp_path / "base", llama(), of), of)
    again.load(found.verified())
    for one in (steady, again):
        one.train(GROUPS, 4)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in steady.state_dict().items())
    other = recipe({**LORA, "lora_rank": 2})
    with pytest.raises(Refused, match="another model or other adapters"):
        Trainer(adapted(tmp_path / "base", llama(), other), other).load(found.folder)
    with pytest.raises(Refused, match="another model or other adapters"):
        Trainer(policy_model(llama()), recipe()).load(found.folder)


def test_a_kl_needs_no_second_model(tmp_path: Path) -> None:
    assert "k3" in PRESETS["grpo"]["kl"]
    of = recipe(LORA, {"preset": "grpo"})
    model = adapted(tmp_path, llama(), of)
    trainer = Trainer(model, of, model.reference())
    first, second = trainer.train(GROUPS, 4), trainer.train(GROUPS, 4)
    assert first.kl_reference == 0.0
    assert second.kl_reference is not None
    assert second.kl_reference > 0.0


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda t, c: t.pop(next(iter(t))), "one side without the other"),
        (
            lambda t, c: t.update({next(iter(t)): torch.full_like(next(iter(t.values())), float("nan"))}),
            "adapter_model",
        ),
        (lambda t, c: c.update(r=3), "adapter_model"),
        (lambda t, c: c.update(use_dora=True), "use_dora"),
        (lambda t, c: t.update({"elsewhere": torch.zeros(2)}), "elsewhere"),
        (lambda t, c: c.update(alpha_pattern={"q_proj": 400}), "alpha_pattern"),
        (lambda t, c: t.update({n: v.bfloat16() for n, v in t.items()}), "lora_A"),
        (lambda t, c: t.update({n: v.to(torch.float8_e4m3fn) for n, v in t.items()}), "lora_A"),
    ],
    ids=[
        *("a side is missing", "not a number", "another rank", "another kind", "a stranger"),
        *("a scale of its own", "bfloat16", "float8"),
    ],
)
def test_a_damaged_adapter_is_refused_with_its_reason(tmp_path: Path, harm: Any, complaint: str) -> None:
    trainer = trained(tmp_path / "base", llama(), lora_publish="adapter")
    trainer.model.write(tmp_path / "v1", trainer.snapshot())
    tensors, config = (
        load_file(tmp_path / "v1" / adapter.WEIGHTS),
        json.loads((tmp_path / "v1" / adapter.CONFIG).read_text()),
    )
    harm(tensors, config)
    header = {"base": adapter.digest(tmp_path / "base"), "dtype": "float32"}
    save_file(tensors, tmp_path / "v1" / adapter.WEIGHTS, header)
    (tmp_path / "v1" / adapter.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=complaint):
        weights.shapes(tmp_path / "v1", tmp_path / "base")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "base", llama(), lora_publish="adapter")
    trainer.model.write(tmp_path / "v1", trainer.snapshot())
    adapted(tmp_path / "other", llama(7), recipe(LORA))
    with pytest.raises(Refused, match="belongs to other weights"):
        weights.shapes(tmp_path / "v1", tmp_path / "other")


def test_a_version_that_is_written_again_has_the_same_bytes(tmp_path: Path) -> None:
    """A learner that comes back may write one again, which the store accepts under its old number only if it is equal.

    By themselves the libraries write a file's header, and the names of the layers, in another order every time.
    """
    of = recipe({**LORA, "lora_publish": "adapter"})
    found = set()
    for number in range(8):
        model = adapted(tmp_path / "base", llama(), of)
        model.write(tmp_path / f"v{number}", model.snapshot())
        files = sorted(path for path in (tmp_path / f"v{number}").iterdir())
        found.add(tuple((path.name, path.read_bytes()) for path in files))
    assert len(found) == 1
    layers = json.loads((tmp_path / "v0" / adapter.CONFIG).read_text())["target_modules"]
    assert layers == sorted(layers)
    assert len(layers) == 2 * 7


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
def test_layers_are_chosen_by_name_and_computed_again_in_the_backward_pass_to_the_same_gradient(
    tmp_path: Path, targets: tuple[str, ...]
) -> None:
    plain = trained(tmp_path, llama(), lora_targets=targets)
    again = trained(tmp_path, llama(), lora_targets=targets, gradient_checkpointing=True)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in plain.state_dict().items())
    layers = {name.split(".")[-4] for name in plain.model.snapshot("adapter")}
    assert layers == (set(targets) or {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
