"""The whole recipe: complete, the same after it was written down, and without secrets."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

import consumer.__main__
import consumer.recipe
import producer.__main__
from broker.errors import Refused
from broker.loading import SECTIONS, load
from deploy.recipe import read
from tests.system.pipeline import ROOT

OURS = sorted((ROOT / "recipes").glob("*.toml"))
TINY = ROOT / "recipes" / "tiny.toml"


def test_there_are_recipes() -> None:
    assert {path.stem for path in OURS} >= {"demo", "gsm8k-qwen", "tiny"}


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_a_recipe_of_ours_is_valid_and_named_after_its_file(path: Path) -> None:
    recipe = read(path)
    assert recipe.run.name == path.stem
    assert recipe.run.max_staleness >= 1, "asynchrony is on"
    assert recipe.learner.pipeline_depth >= 2


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_what_is_written_down_is_complete_and_read_back_as_it_was(path: Path, tmp_path: Path) -> None:
    recipe = read(path, ["--run.seed", "7", "--run.directory", "/data/with space"])
    written = tmp_path / "recipe.toml"
    written.write_text(recipe.toml())
    assert read(written) == recipe
    document = tomllib.loads(recipe.toml())
    assert set(document) == set(SECTIONS)
    for section in SECTIONS:
        left_out = type(getattr(recipe, section)).model_fields.keys() - document[section].keys()
        assert all(getattr(getattr(recipe, section), key) is None for key in left_out), "defaults are written out"


def values() -> list[tuple[str, str, str]]:
    """Every field of a whole recipe with a value, as a person would type it."""
    plain = read(TINY, ["--run.seed", "7", "--broker.url", "redis://host", "--learner.order", "strict"]).plain()
    return [
        (section, key, value if isinstance(value, str) else json.dumps(value))
        for section, fields in plain.items()
        for key, value in fields.items()
    ]


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_every_field_can_be_given_by_flag_and_by_environment(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, flags = tmp_path / "recipe.toml", list[str]()
    empty.touch()
    for section, key, value in values():
        if how == "flag":
            flags += [f"--{section}.{key}", value]
        else:
            monkeypatch.setenv(f"HEADRACE_{section.upper()}__{key.upper()}", value)
    read_back = read(empty, flags).plain()
    assert [(section, key) for section, key, _ in values()] == [(s, k) for s in read_back for k in read_back[s]]
    assert read_back["run"]["seed"] == 7
    assert read_back["learner"]["betas"] == [0.9, 0.95]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_both_processes_read_what_the_launcher_wrote(path: Path, tmp_path: Path) -> None:
    recipe = read(path)
    written = tmp_path / "recipe.toml"
    written.write_text(recipe.toml())
    learner = load(consumer.recipe.ProcessRecipe, written)
    generator = load(producer.__main__.ProcessRecipe, written)
    for section in SECTIONS:
        for process in (learner, generator):
            assert getattr(process, section, None) in (None, getattr(recipe, section))
    assert learner.learner == recipe.learner
    assert generator.generator == recipe.generator


def test_a_password_is_written_down_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_BROKER__PASSWORD", "s3cret")
    recipe = read(TINY)
    assert recipe.broker.password == "s3cret"
    assert "s3cret" not in recipe.toml()
    assert "s3cret" not in str(recipe.plain())
    assert "s3cret" not in repr(recipe)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sampling.group_size", "1"], "sampling: group_size = 1 has no group to compare with"),
        (["--sampling.top_p", "0.9"], "top_p < 1 or top_k > 0 renormalises .* use top_p = 1 and top_k = 0"),
        (["--sampling.top_k", "50"], "top_p < 1 or top_k > 0 renormalises .* use top_p = 1 and top_k = 0"),
        (["--run.max_staleness", "1"], "pipeline_depth = 2 is above run.max_staleness = 1; lower the depth"),
        (["--learner.publish_every", "4"], "publish_every = 4 needs pipeline_depth >= 3"),
        (
            ["--run.max_staleness", "0", "--learner.pipeline_depth", "1", "--learner.publish_every", "2"],
            "pipeline_depth = 1 is above run.max_staleness = 0",
        ),
        (["--run.deterministic", "true", "--generator.engine", "vllm"], "run.deterministic needs generator.engine"),
        (["--learner.groups_per_step", "0"], "learner.groups_per_step: Input should be greater than or equal to 1"),
        (["--run.name", "../elsewhere"], "run.name: String should match"),
        (["--learner.lr", "1e-5"], "unknown key learner.lr"),
        (["--learning.rate", "1e-5"], r"unknown section \[learning\]: known sections are run, broker"),
        (["--steps", "5"], "cannot read the flag '--steps': write --section.key value"),
        (["--run.steps"], "cannot read the flag '--run.steps'"),
        (["run.steps", "5"], "cannot read the flag 'run.steps'"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(flags: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        read(TINY, flags)
    assert "\n" not in str(caught.value)


def test_whatever_a_recipe_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(TINY.read_text().replace('model = "random:llama-tiny"', ""))
    with pytest.raises(Refused, match=r"recipe\.toml: run\.model: Field required"):
        read(path)


CHECK = [str(TINY), "--check", "--run.steps", "77", "--broker.url", "redis://127.0.0.1:1"]


def test_check_shows_the_resolved_recipe_and_starts_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.launcher", *CHECK, "--run.directory", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "runs").exists()
    shown = tmp_path / "shown.toml"
    shown.write_text(done.stdout)
    assert read(shown).run.steps == 77


@pytest.mark.parametrize("main", [consumer.__main__.main, producer.__main__.main])
def test_each_process_can_be_checked_as_well(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["it", *CHECK])
    try:
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["run"]["steps"] == 77
