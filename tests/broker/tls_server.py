"""A Redis that speaks TLS, with certificates made on the spot; skips, saying why, where there is no such server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HOST = "127.0.0.1"
SECONDS = 30.0


@dataclass(frozen=True)
class Encrypted:
    """The server's port and the folder with `ca.pem` and another CA, `wrong.pem`."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"rediss://{HOST}:{self.port}"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"


def program(folder: Path) -> Path:
    """The server's program, under the name by which it knows what it is: Debian ships it with its tools as well."""
    for name in ("redis-server", "redis-check-rdb"):
        if found := shutil.which(name):
            link = folder / "redis-server"
            link.symlink_to(found)
            return link
    pytest.skip("no redis-server that may know TLS is installed (apt-get install redis-tools)")


def certificates(folder: Path) -> None:
    """A CA, a certificate that it signed for 127.0.0.1 (and for no name), and a CA that signed nothing."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make certificates with")
    for ca in ("ca", "wrong"):
        _openssl(folder, f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem")
    _openssl(folder, "req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr")
    (folder / "names").write_text(f"subjectAltName=IP:{HOST}\n")
    _openssl(
        folder,
        "x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.pem",
    )


def _openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True, timeout=60)


@contextmanager
def tls_server(folder: Path, *options: str) -> Iterator[Encrypted]:
    """One that serves TLS and nothing else, with further `options` of redis.conf; ended when the block is left."""
    server = program(folder)
    certificates(folder)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    tls = ["--tls-cert-file", "server.pem", "--tls-key-file", "server.key", "--tls-ca-cert-file", "ca.pem"]
    command = [str(server), "--bind", HOST, "--port", "0", "--tls-port", str(port), *tls, "--tls-auth-clients", "no"]
    log = (folder / "log").open("wb")
    with log, subprocess.Popen([*command, "--save", "", *options], cwd=folder, stdout=log, stderr=log) as process:
        try:
            _wait(process, port, folder / "log")
            yield Encrypted(port, folder)
        finally:
            process.kill()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    said = log.read_text()
    if "Bad directive" in said or "tls" in said.lower():
        pytest.skip(f"the redis-server of this machine does not know TLS: {said.strip().splitlines()[-1]}")
    raise AssertionError(said)
