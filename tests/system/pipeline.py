"""Real processes of a real run: an embedded server, learner and generators as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis

from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.ledger import Ledger

ROOT = Path(__file__).parents[2]
SECONDS = 120.0


def wait_until(ready: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Poll a fact of another process, with a deadline and a name."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.05)


@dataclass
class Pipeline:
    """One run in `folder`; leaving the context ends every process of it."""

    folder: Path
    flags: list[str]
    recipe: str = "recipes/tiny.toml"
    name: str = "tiny"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Pipeline:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.server = EmbeddedServer(self.folder / "redis")
        self.server.start()
        self.client = redis.Redis.from_url(self.server.url)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        self.client.close()
        self.server.stop()

    @property
    def keys(self) -> Keys:
        return Keys(self.name)

    @property
    def run_folder(self) -> Path:
        return self.folder / self.name

    def start(self, module: str, name: str, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, self.recipe, "--run.directory", str(self.folder)]
        command += ["--broker.url", self.server.url, *self.flags, *flags]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ})
        self.processes[name] = process
        return process

    def learner(self, *flags: str) -> subprocess.Popen[bytes]:
        return self.start("consumer", "learner", *flags)

    def generator(self, name: str = "generator", *flags: str) -> subprocess.Popen[bytes]:
        return self.start("producer", name, *flags)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, name: str, seconds: float = SECONDS) -> int:
        """Exit status of a process, which must end by itself."""
        try:
            return self.processes[name].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} did not end in {seconds} s:\n{self.log(name)[-3000:]}") from None

    def terminate(self, name: str) -> int:
        self.processes[name].send_signal(signal.SIGTERM)
        return self.wait_for(name, 30)

    def ledger(self, kind: str = "train") -> Ledger:
        return Ledger(self.client, self.keys, kind)  # type: ignore[arg-type]

    def step(self) -> int:
        return self.ledger().count("step")
