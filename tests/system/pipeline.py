"""Real processes of a real run: an embedded server, learner and generators as a user starts them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis

from broker.embedded import EmbeddedServer
from broker.keys import Keys
from broker.ledger import Ledger
from tests.system.processes import ROOT, Forked

__all__ = ["ROOT", "Pipeline", "wait_until"]

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
    processes: dict[str, Forked] = field(default_factory=dict)
    server_class: type[EmbeddedServer] = EmbeddedServer

    def __enter__(self) -> Pipeline:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.server = self.server_class(self.folder / "redis")
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

    def start(self, module: str, name: str, *flags: str, **environment: str) -> Forked:
        arguments = [self.recipe, "--run.directory", str(self.folder), "--broker.url", self.server.url]
        arguments += [*self.flags, *flags]
        process = Forked(module, arguments, {**os.environ, **environment}, self.folder / f"{name}.log")
        self.processes[name] = process
        return process

    def learner(self, *flags: str, **environment: str) -> Forked:
        return self.start("consumer", "learner", *flags, **environment)

    def generator(self, name: str = "generator", *flags: str, **environment: str) -> Forked:
        return self.start("producer", name, *flags, **environment)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, name: str, seconds: float = SECONDS) -> int:
        """Exit status of a process, which must end by itself."""
        try:
            return self.processes[name].wait(seconds)
        except TimeoutError:
            raise AssertionError(f"{name} did not end in {seconds} s:\n{self.log(name)[-3000:]}") from None

    def terminate(self, name: str) -> int:
        self.processes[name].send_signal(signal.SIGTERM)
        return self.wait_for(name, 30)

    def ledger(self, kind: str = "train") -> Ledger:
        return Ledger(self.client, self.keys, kind)  # type: ignore[arg-type]

    def step(self) -> int:
        return self.ledger().count("step")
