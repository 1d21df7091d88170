"""A Redis server of our own: found on this machine, started as a child, gone when its parent is.

Invariant: at most one server ever writes a data folder (it holds the folder's lock for as long as it lives), and what
it acknowledged is in that folder when it starts again. Refuses to know who connects and what for.

Its parent is the *thread* that called `start`. Where `broker.child` cannot help (macOS), a killed parent leaves the
server behind, and the next start on its folder says so.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Self

import redis
import structlog
import tenacity

from broker import acl
from broker.binary import find_binary
from broker.child import with_parent
from broker.connection import connect
from broker.errors import Refused
from broker.server_config import HOST, SOCKET, server_config
from broker.settings import ENV_PREFIX, BrokerSettings

LOG, LOCK = "redis.log", ".lock"
LONGEST_SOCKET_PATH = 103  # bytes; macOS's sun_path, Linux has four more
READY_SECONDS, POLL_SECONDS = 60.0, 0.02  # ready includes reading an append-only file back
LOCK_SECONDS = 3.0  # a server whose parent has just died needs a moment to leave
PORT_ATTEMPTS = 5
REVIVALS, REVIVAL_SECONDS = 5, 60.0  # more often than this is no accident

log = structlog.get_logger(__name__)


class EmbeddedServer:
    """A Redis on the loopback interface (or only on a unix socket) that keeps its data in `folder`.

    `port` 0 lets the operating system choose, once: a restart comes back on the same port, so clients find it again.
    `start`, `stop` and `with` may be repeated. Raises `Refused` for a taken port, a folder that is in use or cannot be
    written, and a machine without a server.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        unix_socket: bool = False,
        password: str | None = None,
        acl: Path | None = None,
    ) -> None:
        """`acl` is a folder of `broker.acl`: its users may come in, and nobody else; `password` is then without use."""
        self.folder, self.port, self.unix_socket = folder.absolute(), port, unix_socket
        self._password, self._acl = password, acl
        self._process: subprocess.Popen[bytes] | None = None
        self._revivals: list[float] = []
        if unix_socket and len(os.fsencode(self.folder / SOCKET)) > LONGEST_SOCKET_PATH:
            raise Refused(f"{self.folder} is too long a path for a unix socket", "use a shorter folder, or a port")

    @property
    def url(self) -> str:
        """Where clients connect; never contains the password."""
        return f"unix://{self.folder / SOCKET}" if self.unix_socket else f"redis://{HOST}:{self.port}"

    @property
    def alive(self) -> bool:
        """It was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the server. Raises `RuntimeError` if there is none."""
        return self._started.pid

    def start(self) -> Self:
        """Start it and wait until it answers; nothing happens if it is alive. The calling thread must outlive it."""
        if self.alive:
            return self
        chosen = self.unix_socket or self.port != 0
        for _ in range(1 if chosen else PORT_ATTEMPTS):
            port = self.port if chosen else _free_port()
            complaint = self._attempt(0 if self.unix_socket else port)
            if not complaint:
                return self
            if "Address already in use" not in complaint:
                raise Refused(f"Redis would not start in {self.folder}: {complaint}", f"see {self.folder / LOG}")
        raise Refused(f"port {port} of {HOST} is in use", "choose another, or 0 for any free one")

    def revive(self) -> bool:
        """Start it again if it has ended by itself, True if so. Raises `Refused` when that happens again and again."""
        if self._process is None or self.alive:
            return False
        now = time.monotonic()
        self._revivals = [*(t for t in self._revivals if now - t < REVIVAL_SECONDS), now]
        if len(self._revivals) > REVIVALS:
            raise Refused(f"Redis in {self.folder} ends again and again", f"see {self.folder / LOG}")
        log.warning("redis ended and is started again", status=self._process.returncode, folder=str(self.folder))
        self.start()
        return True

    def stop(self, limit: float = 10.0) -> None:
        """End it; what it acknowledged is on disk. Killed if that takes longer than `limit` seconds."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait(self) -> int:
        """Wait until it ends; returns its exit status."""
        return self._started.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server is not started")
        return self._process

    def _attempt(self, port: int) -> str:
        """Start once; '' when it answers, else its own last words."""
        try:
            with _lock(self.folder) as lock, (self.folder / LOG).open("ab") as output:
                said_before = output.tell()
                self._spawn(lock.fileno(), output.fileno(), port)
        except OSError as error:
            raise Refused(f"cannot keep Redis data in {self.folder}: {error.strerror}") from None
        if not self.unix_socket:
            self.port = port
        return "" if self._answers() else _last_words(self.folder / LOG, said_before)

    def _spawn(self, lock: int, output: int, port: int) -> None:
        self._process = process = subprocess.Popen(
            with_parent([str(find_binary()), "-"]),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(lock,),  # ours is closed after this: from here on the lock is the server's
            start_new_session=True,  # Ctrl-C must reach us and not the server, which has to outlive its clients
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # one that has ended already is noticed later
            lines = server_config(port, self.unix_socket, self._password, self._acl / acl.FILE if self._acl else None)
            process.stdin.write(lines.encode())  # so that a password is in no file and no process list

    def _client(self) -> redis.Redis:
        """Of a user that may ask who answers."""
        file = acl.password_file(self._acl, "monitor") if self._acl else None
        settings = BrokerSettings(password=None if file else self._password, password_file=file, command_timeout=0.5)
        return connect(settings, self.url.replace("://", "://monitor@") if file else self.url)

    def _answers(self) -> bool:
        """True as soon as this very process answers, False if it ends instead. Raises `Refused` after the deadline."""
        deadline = time.monotonic() + READY_SECONDS
        with self._client() as client:
            while time.monotonic() < deadline:
                try:
                    self._started.wait(POLL_SECONDS)
                    return False
                except subprocess.TimeoutExpired:
                    if _is(client, self.pid):
                        return True
        self.stop()
        raise Refused(f"Redis in {self.folder} did not answer within {READY_SECONDS:.0f} s", f"see {self.folder / LOG}")


def _is(client: redis.Redis, pid: int) -> bool:
    """It answers, has loaded its data, and is no stranger on the same port."""
    try:
        client.ping()
        info: Any = client.info("server")
    except redis.RedisError:  # not yet: `_answers` asks again until its deadline
        return False
    return bool(info["process_id"] == pid)


def _lock(folder: Path) -> BinaryIO:
    """An open file that holds the folder. Two servers on one append-only file would destroy it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK).open("ab")
    patience = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(BlockingIOError),
        wait=tenacity.wait_fixed(0.1),
        stop=tenacity.stop_after_delay(LOCK_SECONDS),
        reraise=True,
    )
    try:
        patience(fcntl.flock, lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Refused(f"another Redis server is using {folder}", "stop it, or choose another folder") from None
    return lock


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _last_words(path: Path, start: int) -> str:
    """What a server that ended said last, preferring its warnings (`#`), without process id and date."""
    lines = [line for line in path.read_bytes()[start:].decode("utf-8", "replace").splitlines() if line.strip()]
    telling = [line for line in lines if "already in use" in line] or [line for line in lines if " # " in line] or lines
    last = telling[-1] if telling else "it said nothing"
    return last.rpartition(" # ")[2].strip()


def main(arguments: list[str] | None = None) -> int:
    """Run one in the foreground: print its URL, stop it at Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m broker.embedded", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--folder", type=Path, default=Path("runs/redis"), help="where it keeps its data")
    parser.add_argument("--acl", type=Path, help="folder that `make acl` made: its users, and nobody else, may come in")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        password = os.environ.get(f"{ENV_PREFIX}BROKER__PASSWORD")
        with EmbeddedServer(options.folder, options.port, password=password, acl=options.acl) as server:
            print(server.url, flush=True)
            return server.wait()
    except KeyboardInterrupt:
        return 0
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
