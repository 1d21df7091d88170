"""Other people's servers as children of ours: Prometheus, Grafana, a compose project.

Invariant: one that has started answers on its port, or the reason why not is one line; none outlives us. Refuses to
know what they serve.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from broker.child import with_parent
from broker.errors import Refused

HOST = "127.0.0.1"
READY_SECONDS, POLL_SECONDS, STOP_SECONDS = 60.0, 0.05, 20.0


@dataclass
class Service:
    """One server; `command` begins with an absolute path. `health` is the path that answers 200 once it is ready."""

    name: str
    command: Sequence[str]
    log: Path
    port: int
    health: str
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = READY_SECONDS
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For people and clients on this machine."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> Service:
        """Returns once it is ready. Raises `Refused` for a taken port and for one that ends or never answers."""
        self._claim()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                with_parent(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,  # a Ctrl-C reaches us alone
            )
        deadline = time.monotonic() + self.ready_seconds
        while not self._ready():
            if self.ended or time.monotonic() > deadline:
                self.stop()
                raise Refused(f"{self.name} does not answer on {self.url}", self.last_words)
            time.sleep(POLL_SECONDS)
        return self

    def _claim(self) -> None:
        try:
            socket.create_server((HOST, self.port)).close()
        except OSError as error:
            raise Refused(
                f"{self.name} cannot have port {self.port}: {error.strerror}",
                f"free it, or set monitoring.{self.name.lower()}_port",
            ) from None

    def _ready(self) -> bool:
        connection = HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", self.health)
            return connection.getresponse().status == 200
        except (OSError, HTTPException):  # not yet
            return False
        finally:
            connection.close()

    @property
    def ended(self) -> bool:
        """It is over, whatever the reason."""
        return self.process is None or self.process.poll() is not None

    @property
    def last_words(self) -> str:
        """The end of its log, in one line."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"{said[-300:]} (log: {self.log})"

    def stop(self) -> None:
        """Ask, wait, kill. Idempotent."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # it has had its time
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def prometheus(binary: str, configuration: Path, data: Path, port: int) -> Service:
    """A Prometheus of this machine; what it stores stays in `data`."""
    command = [
        binary,
        f"--config.file={configuration.resolve()}",
        f"--storage.tsdb.path={data.resolve()}",
        "--storage.tsdb.retention.time=30d",
        f"--web.listen-address={HOST}:{port}",
        "--log.level=warn",
    ]
    return Service("Prometheus", command, data.with_name("prometheus.log"), port, "/-/ready")
