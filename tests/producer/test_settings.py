"""The generator's sections: what they promise when nothing is said, and the combinations that cannot be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from broker.errors import Refused
from broker.loading import load
from producer.settings import GeneratorRecipe

RECIPE = """
[run]
name = "first"
model = "m"
steps = 1

[task]
name = "addition"

[sampling]
max_tokens = 16
"""


def read(tmp_path: Path, *flags: str) -> GeneratorRecipe:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return load(GeneratorRecipe, path, list(flags), {})


def refused(tmp_path: Path, *flags: str) -> str:
    with pytest.raises(Refused) as caught:
        read(tmp_path, *flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_engine_is_vllm_unless_said_otherwise(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    assert recipe.generator.engine == "vllm"
    assert recipe.generator.count == 1
    assert not recipe.generator.conservative_spans, "spans are exact unless somebody asks for less"


def test_the_longest_sequence_is_prompt_and_completion_together(tmp_path: Path) -> None:
    assert read(tmp_path).sampling.max_sequence == 512 + 16
    assert read(tmp_path, "--sampling.max_prompt_tokens", "100").sampling.max_sequence == 116


def test_a_deterministic_run_needs_a_sampler_that_is_one(tmp_path: Path) -> None:
    line = refused(tmp_path, "--run.deterministic", "true")
    assert "run.deterministic needs generator.engine = 'transformers'" in line
    assert read(tmp_path, "--run.deterministic", "true", "--generator.engine", "transformers").run.deterministic


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("generator.engine", "sglang"),
        ("generator.count", "0"),
        ("generator.slots", "0"),
        ("generator.dtype", "float16"),
        ("generator.device", "tpu"),
        ("generator.tensor_parallel", "0"),
        ("generator.gpu_memory_fraction", "0"),
        ("generator.gpu_memory_fraction", "1.1"),
        ("generator.kv_cache_gib", "0"),
        ("generator.kv_cache_gib", "nan"),
        ("generator.threads", "-1"),
        ("generator.drain_seconds", "-1"),
        ("generator.verifier_workers", "0"),
        ("generator.verifier_seconds", "0"),
        ("task.digits", "0"),
        ("task.digits", "10"),
        ("task.held_out", "-1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(tmp_path: Path, flag: str, value: str) -> None:
    assert f"recipe.toml: {flag}: " in refused(tmp_path, f"--{flag}", value)


def test_a_key_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    assert "unknown key generator.slot" in refused(tmp_path, "--generator.slot", "4")


def test_a_task_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("[task]", "").replace('name = "addition"', ""))
    with pytest.raises(Refused, match=r"recipe\.toml: task: Field required"):
        load(GeneratorRecipe, path, [], {})


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    recipe: Any = read(tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.generator.slots = 1


@pytest.mark.parametrize("recipe", sorted(Path(__file__).parents[2].glob("recipes/*.toml")), ids=lambda path: path.stem)
def test_a_generator_can_read_every_recipe_of_ours(recipe: Path) -> None:
    assert load(GeneratorRecipe, recipe, [], {}).run.name == recipe.stem
