"""Whatever bytes arrive, from Redis, from disk or from another process: a value that keeps its promises, or a reason.

`make fuzz` does the same with more than a hundred thousand inputs and measures time and memory.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import Redis

from benchmarks.decoders import Decoder, decoders
from benchmarks.fuzz import fuzz, kind_of
from benchmarks.mutation import BOMBS, mutated
from broker.documents import shown
from broker.errors import Malformed, Refused
from broker.joining import alive
from broker.keys import Keys
from broker.policy import PolicyStore

NAMES = (
    *(
        "ticket",
        "group",
        "journal entry",
        "audit note",
        "observation",
        "task card",
        "fingerprint",
        "manifest",
        "shipment",
        "chunk of weights",
        "difference of weights",
        "checkpoint document",
    ),
    *("checkpoint state", "recipe", "weight index", "model configuration"),
    *("adapter configuration", "adapter weights", "verify request", "verify answer"),
    *("verify greeting", "result of a program", "steps.jsonl", "healthz and metrics"),
)
SECONDS = 10.0  # for one input, on a machine that is busy with other things

few = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    return {decoder.name: decoder for decoder in decoders(tmp_path_factory.mktemp("fuzz"))}


@pytest.fixture(params=NAMES)
def decoder(request: pytest.FixtureRequest, found: dict[str, Decoder]) -> Decoder:
    return found[request.param]


def test_no_decoder_is_left_out(found: dict[str, Decoder]) -> None:
    assert tuple(found) == NAMES


def test_what_is_right_is_accepted(decoder: Decoder) -> None:
    for good in decoder.good:
        assert decoder.try_it(good) == ""


@few
@given(seed=st.integers(0, 2**64))
def test_messages_that_were_broken(decoder: Decoder, seed: int) -> None:
    chance = random.Random(seed)
    decoder.try_it(mutated(chance, chance.choice(list(decoder.good))))


@few
@given(raw=st.binary(max_size=300))
@example(b"")
@example(b"\n")
@example(b"\x80\x04\x95")  # how a pickle begins
def test_bytes_that_are_no_message(decoder: Decoder, raw: bytes) -> None:
    decoder.try_it(raw)


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_what_makes_parsers_run_out_of_something(decoder: Decoder, bomb: bytes) -> None:
    started = time.perf_counter()
    decoder.try_it(bomb)
    decoder.try_it(bomb + b"\n")
    assert time.perf_counter() - started < SECONDS


def test_every_end_of_a_message_that_was_cut_off(decoder: Decoder) -> None:
    whole = decoder.good[0]
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        decoder.try_it(whole[:end])


# -- the fuzzer itself ------------------------------------------------------------------------------------------------


def _careless(raw: bytes) -> None:
    if raw[:1] == b"[":
        raise KeyError("level")
    raise Malformed("always")


def test_a_decoder_that_lets_another_error_out_is_named_with_its_input() -> None:
    with pytest.raises(RuntimeError, match=r"careless, seed 1, input \d+: KeyError: 'level'"):
        fuzz(Decoder("careless", [b"[1, 2, 3]"], _careless), 100, 1)


def test_a_reason_of_many_lines_or_without_end_is_none() -> None:
    def endless(raw: bytes) -> None:
        raise Refused("because" * 1000)

    def lines(raw: bytes) -> None:
        raise Malformed("because\nof this")

    for check in (endless, lines):
        with pytest.raises(AssertionError):
            Decoder("talkative", [b"x"], check).try_it(b"x")


def test_a_seed_names_its_input() -> None:
    good = b'{"a": [1, 2, {"b": "c"}], "d": 0.5}'
    once, again = ([mutated(random.Random(seed), good) for seed in range(300)] for _ in range(2))
    assert once == again
    assert len(set(once)) > 200


def test_reasons_are_counted_by_their_kind() -> None:
    assert kind_of("/tmp/x/y.toml is not valid TOML: at 'k' (at line 3, column 1)") == kind_of(
        "/tmp/z.toml is not valid TOML: at 'other' (at line 17, column 9)"
    )


# -- smaller ones -----------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.binary(max_size=8), st.binary(max_size=40)), st.floats(0, 2e9))
@example({b"ghost": b"nan"}, 1.0)
@example({b"ghost": b"for ever"}, 1.0)
def test_whatever_generators_say_of_themselves(until: dict[bytes, bytes], now: float) -> None:
    """One that writes nonsense where its time should be is nobody, and does not stop the learner."""
    assert alive(until | {b"good": str(now + 1).encode()}, now) > 0
    assert alive(until, now) in range(len(until) + 1)
    assert alive({b"ghost": b"nan", b"dead": b"0"}, now) == 0


@given(st.recursive(st.none() | st.text() | st.floats(), st.lists))
def test_what_is_quoted_in_a_message_is_short_and_on_one_line(value: object) -> None:
    assert len(shown(value)) <= 80
    assert "\n" not in shown(value)


def test_a_lease_that_is_none_does_not_stop_the_pruning(redis: Redis, keys: Keys, tmp_path: Path) -> None:
    policy = PolicyStore(redis, keys, tmp_path, 2, 60.0)
    for version in range(4):
        policy.write(version, lambda folder: _fill(folder))
    redis.set(keys.policy, 3)
    for name, lease in (("a", "nonsense"), ("b", "0 soon"), ("c", ""), ("d", "1"), ("e", "\0 \0")):
        redis.hset(keys.policy_leases, name, lease)
    policy.lease("real", 1)
    assert policy.prune() == [0]
    assert redis.hkeys(keys.policy_leases) == [b"real"]


def _fill(folder: Path) -> None:
    (folder / "weights").write_text("w")
