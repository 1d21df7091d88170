"""A cluster on one machine: network namespaces as hosts, each with an address of its own, behind one switch.

A host's cable can be pulled: from then on nothing is heard of it and it hears nothing, connections included, as with a
real one. Hosts share no folder: where those of others are, a host sees nothing.

Needs root and iproute2; `missing()` says what is not there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from broker.child import with_parent
from tests.system.processes import ROOT

NETWORK = "10.87.0"
BITS = 24
# In a mount namespace of its own: of the folder above ($1) a host sees its own folder ($0) alone. $2 is its name.
ALONE = """
mount --bind "$0" /mnt && mount -t tmpfs -o size=1m none "$1" && mkdir -p "$0" && mount --move /mnt "$0" &&
hostname "$2" && shift 2 && cd "$0" && exec "$@"
"""


def missing() -> str:
    """What keeps this machine from being a cluster; '' if nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    done = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no namespaces here: {done.stderr.strip()}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Host:
    """One host: its address, its folder, and what runs on it."""

    name: str
    address: str
    switch: str
    port: str  # of the switch
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def space(self) -> str:
        """Its network namespace."""
        return f"{self.switch}-{self.name}"

    @property
    def log(self) -> Path:
        """What its processes say."""
        return self.folder / "output"

    def plug_in(self) -> None:
        """Connect it to the switch, for the first time."""
        self.folder.mkdir(parents=True)
        _ip("netns", "add", self.space)
        _ip("-n", self.switch, "link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        _ip("-n", self.switch, "link", "set", self.port, "master", "bridge", "up")
        _ip("-n", self.space, "address", "add", f"{self.address}/{BITS}", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self.space, "link", "set", device, "up")

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a program there, in its folder."""
        alone = ["/bin/sh", "-c", ALONE, str(self.folder), str(self.folder.parent), self.name, *command]
        inside = [shutil.which("ip") or "ip", "netns", "exec", self.space, "unshare", "--mount", "--uts", *alone]
        given = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder), **environment}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                with_parent(inside, signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=given,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def cut_off(self) -> None:
        """Pull the cable: nothing is said to anybody, neither here nor there."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def put_back(self) -> None:
        """Plug the cable in again."""
        _ip("-n", self.switch, "link", "set", self.port, "up")

    def lose(self) -> None:
        """The power fails: nobody on it says goodbye."""
        self.cut_off()
        self.end()

    def end(self) -> None:
        """Kill what runs on it."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def can_reach(self, address: str, port: int) -> bool:
        """A connection from here to there is answered within a second."""
        code = f"import socket; socket.create_connection(({address!r}, {port}), 1)"
        done = subprocess.run(["ip", "netns", "exec", self.space, sys.executable, "-c", code], capture_output=True)
        return done.returncode == 0


class Network:
    """The switch and its hosts; leaving the context ends everything on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.switch = folder, f"headrace-{os.getpid()}"
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.end()
            _ip("netns", "delete", host.space)
        _ip("netns", "delete", self.switch)

    def host(self, name: str) -> Host:
        """A new host."""
        number = len(self.hosts) + 1
        made = Host(name, f"{NETWORK}.{number}", self.switch, f"port{number}", self.folder / name)
        self.hosts[name] = made
        made.plug_in()
        return made
