"""A run on several hosts to which the usual things happen: one is cut off for a while and comes back, one is lost for
good, one joins; Redis, the learner and every generator are on hosts of their own, and weights go through Redis.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from broker import acl
from broker.binary import find_binary
from broker.keys import Keys
from broker.ledger import Balance, Ledger
from tests.system.audit import Audit
from tests.system.cluster import Host, Network
from tests.system.pipeline import wait_until
from tests.system.processes import ROOT

PORT, RUN, LEASE, BOUND, DEPTH, GROUPS = 6379, "tiny", 4.0, 8, 2, 4
ENDLESS, LAST_STEPS = 1_000_000, 6
FLAGS = f"""--run.steps {ENDLESS} --run.max_staleness {BOUND} --learner.pipeline_depth {DEPTH}
    --learner.groups_per_step {GROUPS} --learner.learning_rate 1e-7 --learner.checkpoint_every 20
    --learner.eval_problems 4 --learner.max_degenerate_in_a_row 100000
    --broker.lease_seconds {LEASE} --broker.command_timeout 2 --policy.backend redis --policy.lease_seconds 20"""


@dataclass
class Told:
    """What was seen of it."""

    seconds: float
    steps: int
    versions: int
    train: Balance
    evaluation: Balance
    late: int
    oldest: int  # staleness of the oldest token trained on, versions
    groups: dict[str, int]  # published, by host
    while_cut_off: int  # steps
    after_return: int  # groups of the host that came back


class ClusterRun:
    """The hosts and what happens to them. `cut_seconds` is how long one is cut off."""

    def __init__(self, folder: Path, model: Path, cut_seconds: float) -> None:
        self.network, self.model, self.cut_seconds = Network(folder), model, cut_seconds
        self.keys = Keys(RUN)
        self.published: dict[str, int] = {}

    def play(self) -> Told:
        """Raises `AssertionError` where something does not come to pass."""
        with self.network as network:
            self.server = network.host("redis")
            self._start_redis()
            socket = str(self.server.folder / "socket")
            self.client = redis.Redis(unix_socket_path=socket, username="root", password="root")
            wait_until(self._answers, "Redis answers")
            audit = Audit(f"unix://root:root@{socket}", self.keys)
            try:
                return self._happen(audit)
            finally:
                audit.close()
                self.client.close()

    def _happen(self, audit: Audit) -> Told:
        began, network = time.monotonic(), self.network
        learner = network.host("learner")
        process = self._learner(learner, ENDLESS)
        hosts = [self._generator(name) for name in ("stays", "cut", "lost")]
        wait_until(lambda: all(self._count(audit, host) > 2 for host in hosts), "three hosts generate")
        stays, cut, lost = hosts
        cut.cut_off()
        assert not cut.can_reach(self.server.address, PORT), "a host that is cut off"
        since, before = time.monotonic(), self.step()
        lost.lose()
        joins = self._generator("joins")
        wait_until(lambda: self._count(audit, joins) > 2, "the host that joined generates")
        wait_until(lambda: time.monotonic() - since > self.cut_seconds, "the cable is mended")
        while_cut_off, already = self.step() - before, self._count(audit, cut)
        cut.put_back()
        wait_until(lambda: self._count(audit, cut) > already + 2, "the host that came back generates")
        process.terminate()
        process.wait()
        last = self.step() + LAST_STEPS
        process = self._learner(learner, last)
        assert process.wait(120) == 0, self.story("the run does not end")
        for host in (stays, cut, joins):
            assert host.processes[0].wait(60) == 0, self.story(f"{host.name} does not leave")
        seconds = time.monotonic() - began
        return self._told(audit, seconds, learner, while_cut_off, self._count(audit, cut) - already)

    def _told(self, audit: Audit, seconds: float, learner: Host, while_cut_off: int, after_return: int) -> Told:
        text = (learner.folder / "runs" / RUN / "steps.jsonl").read_text()
        steps = [line for line in map(json.loads, text.splitlines()) if "step" in line]
        train, evaluation = (Ledger(self.client, self.keys, kind).balance() for kind in ("train", "eval"))
        late: Any = self.client.get(self.keys.late)
        return Told(
            seconds=seconds,
            steps=self.step(),
            versions=int(self.client.get(self.keys.policy) or 0),
            train=train,
            evaluation=evaluation,
            late=int(late or 0),
            oldest=max(line["staleness_max"] for line in steps),
            groups={name: self._count(audit, host) for name, host in self.network.hosts.items() if name in GENERATORS},
            while_cut_off=while_cut_off,
            after_return=after_return,
        )

    def step(self) -> int:
        """Steps committed."""
        return Ledger(self.client, self.keys, "train").count("step")

    def story(self, what: str) -> str:
        """With what every host has said last."""
        hosts = self.network.hosts.items()
        return "\n".join([what, *(f"== {name}\n{host.log.read_text()[-2500:]}" for name, host in hosts)])

    # -- hosts -------------------------------------------------------------------------------------------------------

    def _start_redis(self) -> None:
        folder = self.server.folder
        users = acl.write(folder / "secrets", RUN, {})
        users.write_text(users.read_text() + "user root on >root ~* &* +@all\n")
        settings = ["bind 0.0.0.0", f"port {PORT}", "appendonly yes", "maxmemory-policy noeviction", 'save ""']
        settings += [f"aclfile {users}", f"unixsocket {folder / 'socket'}"]
        (folder / "redis.conf").write_text("\n".join([*settings, ""]))
        self.server.start([str(find_binary()), "redis.conf"])

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def _learner(self, host: Host, steps: int) -> Any:
        recipe = str(ROOT / "recipes" / "tiny.toml")
        flags = [*FLAGS.split(), "--run.steps", str(steps), "--run.directory", str(host.folder / "runs")]
        return self._role(host, "learner", "consumer", recipe, *flags)

    def _generator(self, name: str) -> Host:
        host = self.network.host(name)
        self._role(host, "generator", "producer", "--join", RUN)
        return host

    def _role(self, host: Host, user: str, role: str, *words: str) -> Any:
        """What its host knows: the program, the model, where Redis is and its own password."""
        own = host.folder / "model"
        if not own.exists():
            shutil.copytree(self.model, own)
            shutil.copy(self.server.folder / "secrets" / f"{user}.password", host.folder / "password")
        where = ["--broker.url", f"redis://{user}@{self.server.address}:{PORT}"]
        where += ["--broker.password_file", str(host.folder / "password"), "--run.model", str(own)]
        return host.start([sys.executable, "-m", "deploy.role", role, *words, *where], OMP_NUM_THREADS="1")

    def _count(self, audit: Audit, host: Host) -> int:
        """Groups that came from there."""
        return sum(group.generator.startswith(f"{host.name}-") for group in list(audit.groups.values()))


GENERATORS = ("stays", "cut", "lost", "joins")
