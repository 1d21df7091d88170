"""Differences of chunks: exact for whatever bytes, small where few numbers changed, refused where they are none."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from broker.delta import between, lay
from broker.errors import Malformed


def laid(old: bytes, difference: bytes) -> bytes:
    new = bytearray(old)
    lay(difference, new)
    return bytes(new)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two chunks of one length, of even and odd ones, that share much, little, or nothing."""
    old = draw(st.binary(max_size=2000))
    new = bytearray(old)
    for at in draw(st.lists(st.integers(0, max(0, len(old) - 1)), max_size=50)) if old else []:
        new[at] = draw(st.integers(0, 255))
    return old, bytes(new) if draw(st.booleans()) else draw(st.binary(min_size=len(old), max_size=len(old)))


@given(pairs())
def test_a_difference_laid_onto_the_old_is_the_new(pair: tuple[bytes, bytes]) -> None:
    old, new = pair
    assert laid(old, between(old, new)) == new


@pytest.mark.parametrize("gap", [1, 254, 255, 256, 509, 510, 511, 70_000])
def test_however_far_it_is_to_the_next_change(gap: int) -> None:
    old = np.zeros(3 * gap + 2, "<u2")
    new = old.copy()
    new[::gap] = [1, 65535, 32768, 32767, *range(len(new[::gap]) - 4)]
    assert laid(old.tobytes(), between(old.tobytes(), new.tobytes())) == new.tobytes()


@pytest.mark.parametrize(("changed", "most"), [(0.0, 0.0001), (0.005, 0.005), (0.02, 0.0125), (0.1, 0.045)])
def test_it_takes_little_more_than_the_entropy_of_what_changed(changed: float, most: float) -> None:
    chance = np.random.default_rng(0)
    old = chance.integers(0, 65536, 1 << 20).astype("<u2")
    new = old + np.where(chance.random(len(old)) < changed, chance.choice([1, 65535], len(old)), 0).astype("<u2")
    assert len(between(old.tobytes(), new.tobytes())) <= most * old.nbytes


def test_chunks_of_different_lengths_have_no_difference() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        between(bytes(4), bytes(6))


def frame(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(raw)


def document(*parts: object) -> bytes:
    packed: bytes = msgpack.packb(list(parts))
    return packed


ONE = frame(b"\1")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (document(8, ONE, ONE), "not a difference"),
        (document(8, ONE, ONE, "text"), "not a difference"),
        (document(10, ONE, ONE, ONE), "another length"),
        (document("8", ONE, ONE, ONE), "another length"),
        (document(8, b"no frame", ONE, ONE), "damaged"),
        (document(8, frame(b"\4"), ONE, ONE), "places that are not there"),
        (document(8, frame(b"\1\1\1\1"), frame(bytes(4)), frame(bytes(4))), "places that are not there"),
        (document(8, ONE, frame(b""), ONE), "places that are not there"),
        (document(8, frame(bytes(1 << 20)), ONE, ONE), "longer than what it differs from"),
    ],
)
def test_what_is_no_difference_is_refused(raw: bytes, said: str) -> None:
    onto = bytearray(8)
    with pytest.raises(Malformed, match=said):
        lay(raw, onto)
    assert onto == bytes(8)


def test_a_flipped_bit_is_noticed() -> None:
    old, new = bytes(range(256)) * 8, bytes(reversed(range(256))) * 8
    good = between(old, new)
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        try:
            found = laid(old, bad)
        except Malformed:
            continue
        assert found == new, f"byte {at}"  # where a bit means nothing
