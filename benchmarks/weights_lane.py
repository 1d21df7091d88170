"""One backend on the way from a learner to its generators: a store that writes, processes that read, what it took.

Invariant: a version counts once every reader has said that it holds it. Refuses to know what backends are compared for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis
import torch
from safetensors.torch import save_file

from broker.embedded import EmbeddedServer
from broker.fence import Fence
from broker.keys import Keys
from broker.policies import writer
from broker.settings import RecipeBase

BACKENDS = ("directory", "redis, whole", "redis, differences")
TENSOR = 1 << 22  # numbers in one of the file


@dataclass
class Walk:
    """Weights that move a little from one version to the next."""

    numbers: int
    changed: float
    chance: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.weights = (torch.randn(self.numbers) * 0.02).bfloat16()

    def step(self) -> None:
        """The next version."""
        at = torch.from_numpy(self.chance.integers(0, self.numbers, int(self.numbers * self.changed)))
        self.weights.view(torch.int16)[at] += 1

    def fill(self, folder: Path) -> None:
        """As a learner fills a version's folder."""
        parts = dict(enumerate(torch.split(self.weights, TENSOR)))
        save_file({f"layer.{number}": part for number, part in parts.items()}, folder / "model.safetensors")


@dataclass
class Way:
    """What one backend took, a value a version: seconds, and bytes that each reader took from Redis."""

    write: list[float] = field(default_factory=list)  # until the pointer can move; a learner trains meanwhile
    reach: list[float] = field(default_factory=list)  # from there to the last reader
    received: list[float] = field(default_factory=list)


@contextmanager
def server() -> Iterator[EmbeddedServer]:
    """A Redis that keeps nothing on disk, as bare redis-py is measured on."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as started:
        client = redis.Redis.from_url(started.url)
        client.config_set("appendonly", "no")
        client.config_set("save", "")
        client.close()
        yield started


class Lane:
    """One backend: its store, and its readers."""

    def __init__(self, name: str, url: str, scratch: Path, last: int, readers: int) -> None:
        self.name, self.way, run_name = name, Way(), f"weights-{BACKENDS.index(name)}"
        backend = "directory" if name == "directory" else "redis"
        document = {
            "run": {"name": run_name, "model": "none", "steps": 1},
            "broker": {"url": url},
            "policy": {
                "backend": backend,
                "directory": str(scratch / run_name),
                "dtype": "bfloat16",
                "anchor_every": 1 if name == "redis, whole" else 10**6,
            },
            "sampling": {"max_tokens": 1},
        }
        recipe = RecipeBase.model_validate(document)
        self.client, keys = redis.Redis.from_url(url, protocol=2), Keys(run_name)
        fence = Fence(self.client, keys)
        fence.take_over()
        self.store = writer(recipe, self.client, keys, fence)
        command = [
            sys.executable,
            "-m",
            "benchmarks.weights_reader",
            "--last",
            str(last),
            "--recipe",
            json.dumps(document),
        ]
        self.readers = [
            subprocess.Popen([*command, "--name", f"reader-{number}"], stdout=subprocess.PIPE, text=True)
            for number in range(readers)
        ]
        for reader in self.readers:
            self._told(reader)

    def publish(self, version: int, walk: Walk) -> None:
        """One version, until every reader has it."""
        started = time.time()
        self.store.write(version, walk.fill)
        written = time.time()
        sent = self._sent()
        with self.client.pipeline() as pipe:
            self.store.point(pipe, version)
            pipe.execute()
        held = max(self._told(reader)["held"] for reader in self.readers)
        if version:
            self.way.write.append(written - started)
            self.way.reach.append(held - written)
            self.way.received.append((self._sent() - sent) / len(self.readers))
        self.store.prune()

    def close(self) -> None:
        """End the readers."""
        for reader in self.readers:
            reader.kill()
            reader.wait()
            if reader.stdout is not None:
                reader.stdout.close()
        self.client.close()

    def _sent(self) -> int:
        info: Any = self.client.info("stats")
        return int(info["total_net_output_bytes"])

    @staticmethod
    def _told(reader: subprocess.Popen[str]) -> dict[str, Any]:
        assert reader.stdout is not None
        line = reader.stdout.readline()
        assert line, f"a reader ended with {reader.poll()}"
        told: dict[str, Any] = json.loads(line)
        return told
