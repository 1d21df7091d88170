"""`python -m benchmarks.audit`: what the audit log costs, in microseconds a group and bytes a note.

Invariant: a group of 8 completions of 200 tokens each, over a real Redis on this machine. *In the way* is what a
generator or learner spends before it goes on; *on the thread* is the processor time of making, encoding and sending,
which others may have to wait for where processors are few. Refuses to know models.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from broker.audit import Note, encode_note
from broker.audit_log import WAITING, AuditLog
from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.schema import Rollout, RolloutGroup, Ticket, VersionSpan
from broker.settings import BrokerSettings
from broker.tickets import Claim
from consumer.account import _trained
from consumer.buffer import Held
from consumer.uses import BOUNDED, Uses
from producer.account import account
from producer.engine import Completion
from producer.sampler import Served
from producer.tasks import Problem, Verdict

SIZE, LENGTH, ROUNDS = 8, 200, 20
TICKET = "t0000000001p0000000017"


def generators_note() -> Callable[[], Note]:
    """Of a group as GSM8K has them."""
    spans = (VersionSpan(3, 0, LENGTH // 2), VersionSpan(4, LENGTH // 2, LENGTH))
    one = Completion(np.arange(LENGTH, dtype=np.int32), np.full(LENGTH, -0.5, np.float32), spans, False)
    verdict = Verdict(1.0, {"correct": 1.0, "formatted": 1.0, "length": 0.5})
    text = "Then she has 3 + 4 = 7 apples left. " * (LENGTH // 10)
    served = Served(_group(), Problem("Q" * 400, "7"), one.tokens, [one] * SIZE, [text] * SIZE, [verdict] * SIZE)
    claim = Claim(b"1700000000000-0", Ticket(TICKET, 17, 5, 3), 1)
    return partial(account, claim, served, "Q" * 500, 3.5)


def learners_note() -> Callable[[], Note]:
    """Of the same group, trained on."""
    names = ("advantage", "ratio_mean", "ratio_min", "ratio_max", *BOUNDED)
    uses = Uses({name: np.linspace(0.1, 1.0, SIZE) for name in names}, (SIZE,))
    return partial(_trained, Held(b"1700000000000-0", _group()), 0, uses, 12, 11)


def _group() -> RolloutGroup:
    tokens, logprobs = np.arange(LENGTH, dtype=np.int32), np.full(LENGTH, -0.5, np.float32)
    made = Rollout(tokens, logprobs, (VersionSpan(3, 0, LENGTH),), 1.0, {"correct": 1.0})
    return RolloutGroup(TICKET, "train", 17, tokens, (made,) * SIZE, "host-1", "", 1.5)


def measure(url: str, make: Callable[[], Note]) -> tuple[float, float, float]:
    """Microseconds in the way, microseconds of processor time in all, both a note; bytes of one."""
    settings = BrokerSettings()
    log = AuditLog.of(settings, url, Keys("bench"))
    ways, whole = [], []
    for _ in range(ROUNDS):
        spent = time.process_time()
        waits = 0.0
        for _ in range(WAITING - 1):
            at = time.perf_counter()
            log.write(TICKET, make)
            waits += time.perf_counter() - at
            time.sleep(0.0005)  # a group is no tight loop: the log's thread has its turn
        log.close(60.0)
        ways.append(waits)
        whole.append(time.process_time() - spent)
    assert log.lost == 0
    each = 1e6 / (WAITING - 1)
    return min(ways) * each, min(whole) * each, len(encode_note(make(), settings.audit_bytes))


def main() -> None:
    """Entry point."""
    print("| note | in the way, µs | on the thread, µs | bytes |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        for name, make in (("generator's", generators_note()), ("learner's", learners_note())):
            way, whole, size = measure(server.url, make)
            print(f"| {name} | {way:.0f} | {whole:.0f} | {size:,} |", flush=True)


if __name__ == "__main__":
    main()
