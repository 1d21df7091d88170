"""One cell of the transport leg: all ways, in turn, with groups of one size, so many producers and one kind of socket.

Invariant: the ways take turns in each round, so that what the machine does otherwise meets all of them. Refuses to know
what is asked of the ratios.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.findings import ratios
from benchmarks.transport_trial import Load, Outcome, trial
from benchmarks.transport_ways import WAYS
from broker.embedded import EmbeddedServer

TCP, UNIX = "TCP", "a unix socket"
C_CLIENT = "redis-benchmark"
KEPT = 64  # entries that stay in its stream
HEAD = """\
| size | over | producers | of bare | of pickle | of redis-benchmark | producers' work | learner's | server's |
|---|---|---|---|---|---|---|---|---|"""


@dataclass
class Cell:
    """What each way was found to do, round by round."""

    load: Load
    socket: str
    found: dict[str, list[Outcome]] = field(default_factory=dict)
    adds: list[float] = field(default_factory=list)  # entries a second, by a client in C

    def play(self, url: str, ways: Sequence[str], rounds: int) -> None:
        """So many rounds."""
        for _ in range(rounds):
            for name in ways:
                self.found.setdefault(name, []).append(trial(WAYS[name], url, self.load))
            if shutil.which(C_CLIENT) is not None:
                self.adds.append(adds(url, self.load))

    def against(self, other: str) -> tuple[float, ...]:
        """Our groups a second as a multiple of another way's, round by round; () where there is none."""
        ours = [outcome.rate for outcome in self.found["ours"]]
        theirs = self.adds if other == C_CLIENT else [outcome.rate for outcome in self.found[other]]
        return ratios(ours, theirs) if theirs else ()

    def row(self) -> str:
        """Of the table under `HEAD`: medians of the ratios, and which party does how much of the work."""
        found = [self.against(other) for other in ("bare", "pickles", C_CLIENT)]
        ratios_of = [f"{statistics.median(values):.2f}×" if values else "" for values in found]
        shares = [f"{self._share(party):.0f} %" for party in ("producers", "consumer", "server")]
        return f"| {' | '.join([told(self.load.size), self.socket, str(self.load.producers), *ratios_of, *shares])} |"

    def _share(self, party: str) -> float:
        return statistics.median(100 * outcome.of(party) / outcome.work for outcome in self.found["ours"])


def told(size: int) -> str:
    """`64 KB`."""
    return f"{size >> 10} KB" if size < 1 << 20 else f"{size >> 20} MB"


@contextlib.contextmanager
def server(socket: str) -> Iterator[str]:
    """The URL of one as every run starts it, append-only file and all."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder), unix_socket=socket == UNIX) as started:
        yield started.url


def adds(url: str, load: Load) -> float:
    """Entries of that size a second that the server takes from a client in C, with a connection a producer."""
    where = ["-s", url.removeprefix("unix://")] if url.startswith("unix:") else ["-p", url.rpartition(":")[2]]
    command = [C_CLIENT, *where, "-c", str(load.producers), "-n", str(load.groups), "--csv", "-x"]
    entry = ["XADD", C_CLIENT, "MAXLEN", str(KEPT), "*", "ticket_id", "t0000000000p0000000000", "payload"]
    ended = subprocess.run([*command, *entry], input=b"x" * load.size, capture_output=True, check=True)
    return float(ended.stdout.decode().strip().splitlines()[-1].split('","')[1])
