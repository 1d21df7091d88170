"""A container engine's command line, Docker's or Podman's: images are built, and containers run as in the compose file.

Invariant: every container runs as its image's user, without capabilities, on a root file system that is read-only;
those that were started are gone when the context ends, and their volumes with them. Refuses to know what is in them.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

LOCKED = ("--read-only", "--shm-size", "1g", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
VOLUMES = {"data": "/data", "models": "/models", "policy": "/policy"}


@dataclass
class Engine:
    """`command` begins every call; the flags are what this machine's engine needs beside ours."""

    command: list[str]
    build_flags: list[str] = field(default_factory=list)
    run_flags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mark = f"headrace-{uuid.uuid4().hex[:6]}"  # in the names of all that we start
        self._started: list[str] = []

    def __enter__(self) -> Self:
        for volume in VOLUMES:
            self.call("volume", "create", f"{self.mark}-{volume}")
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(self._started):  # who shares another's network goes before it
            self.call("rm", "-f", name, check=False)
        for volume in VOLUMES:
            self.call("volume", "rm", "-f", f"{self.mark}-{volume}", check=False)

    def call(self, *words: str, check: bool = True, seconds: float = 600.0) -> subprocess.CompletedProcess[str]:
        """One call. Raises `AssertionError` with what it said where it must succeed and does not."""
        done = subprocess.run([*self.command, *words], capture_output=True, text=True, timeout=seconds)
        assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def build(self, file: Path, target: str, tag: str, *flags: str) -> None:
        """One image of a file whose context is the folder above it."""
        words = ["build", *self.build_flags, "-f", str(file), "--target", target, "-t", tag, *flags]
        self.call(*words, str(file.parents[1]), seconds=3600.0)

    def inspect(self, thing: str, kind: str = "image") -> dict[str, Any]:
        """What the engine knows of an image or a container."""
        (found,) = json.loads(self.call(kind, "inspect", thing).stdout)
        return dict(found)

    def words(self, image: str, *words: str, flags: tuple[str, ...] = (), **variables: str) -> list[str]:
        """The arguments that run a container, with all the volumes."""
        mounts = [part for name, path in VOLUMES.items() for part in ("-v", f"{self.mark}-{name}:{path}")]
        given = [part for name, value in variables.items() for part in ("-e", f"{name}={value}")]
        scratch = ["--tmpfs", "/tmp:rw,exec,nosuid,nodev,size=2g,mode=1777"]
        return [*LOCKED, *scratch, *self.run_flags, *mounts, *given, *flags, image, *words]

    def run(self, image: str, *words: str, flags: tuple[str, ...] = (), **variables: str) -> str:
        """A container's output, standard error included; it must end well and has no network."""
        name = f"{self.mark}-{len(self._started)}"
        self._started.append(name)
        alone = ("--name", name, "--network", "none", *flags)
        done = self.call("run", *self.words(image, *words, flags=alone, **variables), check=False)
        assert done.returncode == 0, f"{image} {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, name: str, image: str, *words: str, flags: tuple[str, ...] = (), **variables: str) -> str:
        """A container that goes on; its name."""
        name = f"{self.mark}-{name}"
        self._started.append(name)
        self.call("run", "-d", *self.words(image, *words, flags=("--name", name, *flags), **variables))
        return name

    def inside(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in a container that runs."""
        return self.call("exec", name, *words, check=False)

    def log(self, name: str) -> str:
        """What a container has said."""
        done = self.call("logs", name)
        return done.stdout + done.stderr

    def wait(self, name: str, seconds: float) -> int:
        """The exit status of a container, which must end by itself. Raises `AssertionError` with its log."""
        try:
            return int(self.call("wait", name, seconds=seconds).stdout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} does not end:\n{self.log(name)[-3000:]}") from None
