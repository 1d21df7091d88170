"""What differs between two chunks of bytes of one length, small where few of their numbers do.

Invariant: `lay` onto the old chunk what `between` found and it is the new one, bit for bit; bytes that are no such
difference are refused before anything is changed. Refuses to know what the numbers mean, and where chunks come from.

From one step to the next nearly all weights in bfloat16 keep all their bits (a step moves a weight by less than the
learning rate, and its neighbour in bfloat16 is 1/256 of it away), and one that does not mostly goes to a neighbour. So
a difference is: how far it is from one changed number to the next, and by how much each differs as an integer, whose
sign is folded in (0, -1, 1, -2, … → 0, 1, 2, 3, …) so that it is small.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from broker.errors import Malformed

LEVEL = 3  # of zstd: higher ones gain a hundredth for twice the time
FAR = 255  # a byte of a distance that goes on in the next one
Numbers = npt.NDArray[np.unsignedinteger[Any]]


def between(old: bytes, new: bytes) -> bytes:
    """What `lay` makes `new` of `old` by; bytes of one length."""
    before, after = _numbers(old), _numbers(new)
    if len(old) != len(new):
        raise ValueError("chunks of different lengths")
    at = np.flatnonzero(before != after)
    folded = _folded(after[at] - before[at])
    planes = [np.ascontiguousarray(folded >> np.uint16(8 * byte)).astype(np.uint8) for byte in range(before.itemsize)]
    pack = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
    parts = [pack.compress(part.tobytes()) for part in (_distances(at), *planes)]
    packed: bytes = msgpack.packb([len(new), *parts], use_bin_type=True)
    return packed


def lay(difference: bytes, onto: bytearray) -> None:
    """Make the new chunk of the old one. Raises `Malformed`."""
    numbers = _numbers(onto)
    length, *parts = _parts(difference, 2 + numbers.itemsize)
    if length != len(onto):
        raise Malformed("of a chunk of another length")
    distances, *planes = (_unpacked(part, 2 * len(numbers)) for part in parts)
    at = _places(distances)
    if (len(at) and at[-1] >= len(numbers)) or any(len(plane) != len(at) for plane in planes):
        raise Malformed("of places that are not there")
    folded = np.zeros(len(at), numbers.dtype)
    for byte, plane in enumerate(planes):
        folded |= plane.astype(numbers.dtype) << (8 * byte)
    numbers[at] += _unfolded(folded)


def _numbers(chunk: bytes | bytearray) -> Numbers:
    """As 16-bit integers, or as bytes if their number is odd."""
    return np.frombuffer(chunk, "<u2" if len(chunk) % 2 == 0 else "u1")


def _folded(differences: Numbers) -> Numbers:
    """0, -1, 1, -2, … (as unsigned integers) → 0, 1, 2, 3, …"""
    negative = differences >> (8 * differences.itemsize - 1) == 1
    doubled = differences << 1
    return np.where(negative, ~doubled, doubled)


def _unfolded(folded: Numbers) -> Numbers:
    halved = folded >> 1
    return np.where(folded & 1 == 1, ~halved, halved)


def _distances(at: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """Numbers skipped before each of the places `at`, in base 255: as many bytes 255 as it holds, and the rest."""
    skipped = np.diff(at, prepend=-1) - 1
    ends = np.cumsum(skipped // FAR + 1)
    out = np.full(ends[-1] if len(ends) else 0, FAR, np.uint8)
    out[ends - 1] = skipped % FAR
    return out


def _places(distances: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """What `_distances` was given."""
    ends = np.flatnonzero(distances != FAR)
    return np.cumsum(distances, dtype=np.intp)[ends] + np.arange(len(ends))


def _parts(raw: bytes, count: int) -> list[Any]:
    try:
        parts = msgpack.unpackb(raw, raw=False)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack: {type(error).__name__}") from None
    if not isinstance(parts, list) or len(parts) != count or not all(isinstance(part, bytes) for part in parts[1:]):
        raise Malformed("not a difference")
    return parts


def _unpacked(frame: bytes, longest: int) -> npt.NDArray[np.uint8]:
    try:
        if zstandard.frame_content_size(frame) > longest:
            raise Malformed("longer than what it differs from")
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame, max_output_size=longest), np.uint8)
    except zstandard.ZstdError as error:
        raise Malformed(f"damaged: {error}") from None
