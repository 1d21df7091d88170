"""A recipe is valid and complete, or refused in one line that names the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.errors import Refused
from broker.loading import SECTIONS, load
from broker.run_folder import RunFolder
from broker.settings import BrokerSettings, RecipeBase, redis_url

GOOD = """
[run]
name = "first"
model = "models/tiny"
steps = 10

[sampling]
max_tokens = 16

[learner]
lr = 1e-5
"""

Recipe = Callable[..., RecipeBase]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Load `text` as a recipe, with flags and an environment of its own."""

    def read(text: str, *flags: str, **environ: str) -> RecipeBase:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return load(RecipeBase, path, list(flags), environ)

    return read


def refused(recipe: Recipe, text: str, *flags: str, **environ: str) -> str:
    with pytest.raises(Refused) as caught:
        recipe(text, *flags, **environ)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_minimal_recipe_has_the_documented_defaults(recipe: Recipe) -> None:
    read = recipe(GOOD)
    assert (read.run.max_staleness, read.sampling.group_size, read.policy.keep) == (8, 8, 2)
    assert read.broker.url is None
    assert RunFolder.of(read.run).path == Path("runs/first")
    assert read.policy_directory == Path("runs/first/policy")


def test_sections_of_other_rooms_are_dropped(recipe: Recipe) -> None:
    assert not hasattr(recipe(GOOD), "learner")


def test_settings_cannot_be_changed(recipe: Recipe) -> None:
    read = recipe(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        read.run.seed = 1  # type: ignore[misc]


# -- where a value comes from -----------------------------------------------------------------------------------------


def test_the_environment_overrides_the_file(recipe: Recipe) -> None:
    read = recipe(GOOD, HEADRACE_RUN__STEPS="20", HEADRACE_SAMPLING__MAX_TOKENS="32", PATH="/bin", HEADRACE="x")
    assert (read.run.steps, read.sampling.max_tokens) == (20, 32)


@pytest.mark.parametrize("flags", [["--run.steps", "30"], ["--run.steps=30"], ["--run.steps=5", "--run.steps", "30"]])
def test_flags_override_both(recipe: Recipe, flags: list[str]) -> None:
    assert recipe(GOOD, *flags, HEADRACE_RUN__STEPS="20").run.steps == 30


def test_a_flag_reaches_a_section_that_the_file_has_not(recipe: Recipe) -> None:
    assert recipe(GOOD, "--policy.directory=/weights/a=b").policy_directory == Path("/weights/a=b")
    assert recipe(GOOD, "--run.deterministic", "true").run.deterministic is True


def test_password_and_url_come_from_the_environment_and_the_password_is_never_shown(recipe: Recipe) -> None:
    read = recipe(GOOD, HEADRACE_BROKER__URL="redis://host", HEADRACE_BROKER__PASSWORD="hidden")
    assert redis_url(read.broker) == "redis://host"
    assert read.broker.password == "hidden"
    assert "hidden" not in repr(read) + read.model_dump_json() + str(read.model_dump())


@pytest.mark.parametrize(
    ("url", "kept", "password"),
    [
        ("redis://:s3%2Fcret@host:6379/0", "redis://host:6379/0", "s3/cret"),
        ("rediss://me:s3cret@host", "rediss://me@host", "s3cret"),
        ("redis://me@host", "redis://me@host", None),
        ("redis://host:6379", "redis://host:6379", None),
        ("unix:///tmp/a:b@c", "unix:///tmp/a:b@c", None),
    ],
)
def test_a_password_in_the_url_is_kept_apart_from_it(recipe: Recipe, url: str, kept: str, password: str | None) -> None:
    settings = recipe(GOOD, "--broker.url", url).broker
    assert (settings.url, settings.password) == (kept, password)


def test_nobody_said_where_redis_is() -> None:
    with pytest.raises(Refused, match=r"broker\.url is not set"):
        redis_url(BrokerSettings())


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[run]\nname = 'a'", "is not valid TOML: "),
        ("[broken", "is not valid TOML: "),
        ("[sampler]\nx = 1", "unknown section [sampler]: known sections are run, broker, "),
        ("[broker]\nurll = 'redis://x'", "unknown key broker.urll"),
        ("[broker]\nlease_seconds = 0", "broker.lease_seconds: Input should be greater than 0"),
        ("[broker]\nlease_seconds = inf", "broker.lease_seconds: Input should be a finite number"),
        ("[broker]\nconnect_timeout = nan", "broker.connect_timeout: Input should be a finite number"),
        ("[policy]\nkeep = 1", "policy.keep: Input should be greater than or equal to 2"),
        ("[policy]\nbackend = 's3'", "policy.backend: Input should be 'directory'"),
        ("[policy.deeper]\nx = 1", "unknown key policy.deeper"),
    ],
)
def test_what_is_added_to_a_good_recipe(recipe: Recipe, change: str, said: str) -> None:
    assert said in refused(recipe, GOOD + change)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--sampling.group_size=1", "sampling: group_size = 1 has no group to compare with"),
        ("--sampling.top_p=0.9", "sampling: top_p < 1 or top_k > 0 renormalises"),
        ("--sampling.top_p=1.5", "sampling.top_p: Input should be less than or equal to 1"),
        ("--sampling.top_k=50", "sampling: top_p < 1 or top_k > 0 renormalises"),
        ("--sampling.temperature=0", "sampling.temperature: Input should be greater than 0"),
        ("--sampling.temperature=nan", "sampling.temperature: Input should be a finite number"),
        ("--run.steps=many", "run.steps: Input should be a valid integer"),
        ("--run.steps=0", "run.steps: Input should be greater than 0"),
        ("--run.max_staleness=-1", "run.max_staleness: Input should be greater than or equal to 0"),
        ("--run.name=../escape", "run.name: String should match pattern"),
        ("--run.name=a:b", "run.name: String should match pattern"),
        ("--run.name=", "run.name: String should match pattern"),
        ("--run.nam=x", "unknown key run.nam"),
        ("--sampler.x=1", "unknown section [sampler]"),
        ("--run.steps", "cannot read the flag '--run.steps': write --section.key value"),
        ("--steps=1", "cannot read the flag '--steps'"),
        ("steps", "cannot read the flag 'steps'"),
        ("-v", "cannot read the flag '-v'"),
    ],
)
def test_what_a_flag_may_not_say(recipe: Recipe, flag: str, said: str) -> None:
    assert said in refused(recipe, GOOD, flag)


def test_what_the_environment_may_not_say(recipe: Recipe) -> None:
    assert "unknown key broker.urll" in refused(recipe, GOOD, HEADRACE_BROKER__URLL="x")
    assert "unknown section [nonsense]" in refused(recipe, GOOD, HEADRACE_NONSENSE__X="1")


@pytest.mark.parametrize("section", ["run", "learner"])
@pytest.mark.parametrize("flags", [[], ["--run.steps=5", "--learner.lr=1"]])
def test_a_section_that_is_a_value(recipe: Recipe, section: str, flags: list[str]) -> None:
    text = f"{section} = 3\n" + GOOD.replace(f"[{section}]", "[monitoring]")
    assert f"{section} is not a section: write [{section}]" in refused(recipe, text, *flags)


def test_a_key_above_all_sections(recipe: Recipe) -> None:
    assert "unknown section [steps]" in refused(recipe, "steps = 3\n" + GOOD)


def test_what_is_missing_is_named(recipe: Recipe) -> None:
    assert "run: Field required (and 1 more)" in refused(recipe, "")
    assert "sampling.max_tokens: Field required" in refused(recipe, GOOD.replace("max_tokens = 16", ""))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no recipe at .*: name a TOML file"):
        load(RecipeBase, tmp_path / "absent.toml", [], {})
    with pytest.raises(Refused, match="Is a directory"):
        load(RecipeBase, tmp_path, [], {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match="is not valid TOML"):
        load(RecipeBase, tmp_path / "binary.toml", [], {})


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "good.toml"
    path.write_text(GOOD)
    return path


keys = st.sampled_from(["steps", "seed", "name", "max_tokens", "top_p", "top_k", "url", "keep", "directory", "x"])
overrides = st.dictionaries(st.tuples(st.sampled_from(SECTIONS), keys), st.text(max_size=8), max_size=4)


@given(overrides)
def test_no_override_breaks_the_reader(good_file: Path, chosen: dict[tuple[str, str], str]) -> None:
    flags = [f"--{section}.{key}={value}" for (section, key), value in chosen.items()]
    try:
        assert load(RecipeBase, good_file, flags, {}).sampling.top_p == 1
    except Refused:
        return  # in one line, as the tests above have it
