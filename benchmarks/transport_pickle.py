"""A neighbour's way: a group is a list of dicts of Python lists, pickled, one XADD each; one XREAD COUNT 1 for each.

After PipelineRL's `pipelinerl/streams.py`: an index beside the bytes, `MAXLEN ~ 1000000`, a read that blocks for 100 ms
from the last entry seen. There are no tickets, nothing is acknowledged and nothing deleted: that is all it does. The
client is production's (hiredis, no silent second sending).

The one file of the project that unpickles. It reads what it has just written itself to a server of its own, to say what
not doing it is worth. Invariant: not slower than the neighbour. Refuses to know our contract.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from benchmarks.transport_groups import lists, texts
from benchmarks.transport_trial import Seat, Way

STREAM, LONGEST, BLOCK_MS = "actor", 1_000_000, 100


class Producer:
    """Pickles and adds its share, one after the other."""

    coding = 0.0

    made: Callable[[int], list[dict[str, Any]]] = staticmethod(lists)

    def __init__(self, seat: Seat) -> None:
        self._client = seat.client()
        self._group = self.made(seat.load.size)
        share, over = divmod(seat.load.groups, seat.load.producers)
        self._count = share + (seat.number <= over)

    def run(self) -> None:
        """All of them."""
        for index in range(self._count):
            data = pickle.dumps(self._group)
            self._client.xadd(STREAM, {"index": index, "data": data}, maxlen=LONGEST, approximate=True)


class WithTexts(Producer):
    """The same with everything that the neighbour has in a group."""

    made = staticmethod(texts)


class Consumer:
    """Reads and unpickles one after the other."""

    coding = 0.0

    def __init__(self, seat: Seat) -> None:
        self._client, self._groups = seat.client(), seat.load.groups

    def run(self) -> None:
        """Until all groups have been read."""
        last: Any = 0
        for _ in range(self._groups):
            found: Any = None
            while not found:
                found = self._client.xread({STREAM: last}, count=1, block=BLOCK_MS)
            ((last, entry),) = found[0][1]
            group = pickle.loads(entry[b"data"])
            assert group, "a group of nobody"


PICKLE = Way("pickles", Producer, Consumer)
PICKLE_TEXTS = Way("pickles with texts", WithTexts, Consumer)
