"""A server of our own keeps its data, keeps its folder to itself, and never outlives whoever started it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library
import tenacity

from broker import embedded
from broker.binary import binary_version, find_binary
from broker.child import with_parent
from broker.connection import connect, require
from broker.embedded import LONGEST_SOCKET_PATH, EmbeddedServer
from broker.errors import Refused
from broker.settings import BrokerSettings

ROOT = Path(embedded.__file__).parents[1]
EXIT_SECONDS = 10.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """One for this test alone, which may do to it what it likes."""
    with EmbeddedServer(tmp_path / "redis") as server:
        yield server


def client_of(server: EmbeddedServer) -> redis_library.Redis:
    return connect(BrokerSettings(command_timeout=5.0), server.url)


def refusal(server: EmbeddedServer) -> str:
    with pytest.raises(Refused) as caught, server:
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kill(server: EmbeddedServer) -> int:
    pid = server.pid
    os.kill(pid, signal.SIGKILL)
    server.wait()
    return pid


@tenacity.retry(
    retry=tenacity.retry_if_result(lambda there: there),
    wait=tenacity.wait_fixed(0.02),
    stop=tenacity.stop_after_delay(EXIT_SECONDS),
)
def still_there(pid: int) -> bool:
    """False once the process is gone (or a zombie that nobody has waited for); gives up after a while."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_it_keeps_what_it_acknowledged(server: EmbeddedServer) -> None:
    with client_of(server) as client:
        expected = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "bind": "127.0.0.1",
            "io-threads": "1",
            "dir": str(server.folder),
        }
        found: Any = {name: client.config_get(name) for name in expected}
    assert {name: value[name] for name, value in found.items()} == expected


def test_data_and_pending_entries_survive_a_restart(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        url = server.url
        with client_of(server) as client:
            client.xgroup_create("stream", "group", id="0", mkstream=True)
            ids = [client.xadd("stream", {"n": n}) for n in range(100)]
            client.xreadgroup("group", "reader", {"stream": ">"}, count=10)
    with pytest.raises(redis_library.ConnectionError), client_of(server) as client:
        client.ping()
    with server, client_of(server) as client:
        assert server.url == url
        kept: Any = client.xrange("stream")
        pending: Any = client.xpending("stream", "group")
        assert [entry_id for entry_id, _ in kept] == ids
        assert pending["pending"] == 10


def test_a_killed_server_is_revived_at_the_same_address_with_its_data(server: EmbeddedServer) -> None:
    with client_of(server) as client:
        client.set("k", "v")
        assert not server.revive()
        killed = kill(server)
        assert server.revive()
        assert server.pid != killed
        assert client.get("k") == b"v"


def test_a_server_that_dies_over_and_over_is_given_up(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "REVIVALS", 1)
    kill(server)
    assert server.revive()
    kill(server)
    with pytest.raises(Refused, match="ends again and again"):
        server.revive()


def test_starting_and_stopping_twice_does_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    server.stop()
    with server:
        pid = server.start().pid
        assert server.start().pid == pid
    server.stop()
    assert not server.alive
    assert not server.revive()
    with pytest.raises(RuntimeError):
        server.wait()


def test_a_server_that_does_not_want_to_stop_is_killed(server: EmbeddedServer) -> None:
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop(limit=0.1)
    assert not server.alive
    assert not Path(f"/proc/{pid}").exists()


def test_over_a_unix_socket_nothing_listens_on_the_network(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, unix_socket=True) as server, client_of(server) as client:
        require(client)
        assert server.url == f"unix://{tmp_path}/redis.sock"
        assert client.config_get("port") == {"port": "0"}
        assert stat.S_IMODE((tmp_path / "redis.sock").stat().st_mode) == 0o700


def test_a_path_too_long_for_a_unix_socket(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="too long a path for a unix socket"):
        EmbeddedServer(tmp_path / ("x" * LONGEST_SOCKET_PATH), unix_socket=True)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in refusal(EmbeddedServer(tmp_path, port))


def test_another_redis_on_the_port_is_not_mistaken_for_ours(server: EmbeddedServer, tmp_path: Path) -> None:
    assert "is in use" in refusal(EmbeddedServer(tmp_path / "other", server.port))


def test_a_free_port_that_was_taken_meanwhile_is_replaced(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_free = embedded._free_port()
    offers = iter([server.port, really_free])
    monkeypatch.setattr(embedded, "_free_port", lambda: next(offers))
    with EmbeddedServer(tmp_path / "other") as other:
        assert other.port == really_free


def test_a_folder_belongs_to_one_server(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOCK_SECONDS", 0.2)
    assert f"another Redis server is using {server.folder}" in refusal(EmbeddedServer(server.folder))
    with client_of(server) as client:
        client.ping()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot keep Redis data in" in refusal(EmbeddedServer(tmp_path / "file" / "redis"))


def test_data_that_is_damaged_is_refused_with_the_servers_own_words(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, client_of(server) as client:
        client.set("k", "v")
    [journal] = (tmp_path / "appendonlydir").glob("*.incr.aof")
    journal.write_bytes(b"*3\r\n$3\r\nSET\r\nnonsense" + journal.read_bytes())
    line = refusal(EmbeddedServer(tmp_path))
    assert "Redis would not start in" in line
    assert "Bad file format" in line


def test_an_old_server_on_the_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=6.0.16 sha=0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert binary_version(old) == (6, 0, 16)
    assert find_binary() != old
    old.write_text("#!/bin/sh\necho Redis server v=7.0.15 sha=0\n")
    assert find_binary() == old


def test_a_machine_without_any_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "no Redis server found" in refusal(EmbeddedServer(tmp_path / "redis"))


PARENT = """
import sys
from pathlib import Path
from broker.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1])).start()
print(server.pid, flush=True)
sys.stdin.read()
"""


def test_it_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    assert still_there(pid) is False
    with EmbeddedServer(tmp_path) as successor:
        assert successor.alive  # its folder is free again


def test_a_child_whose_parent_has_gone_already_does_not_start() -> None:
    command = with_parent([sys.executable, "-c", "print('started')"])
    command[command.index(str(os.getpid()))] = "1"  # as if another than the expected parent had adopted it
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the parent ended first\n")


@pytest.fixture
def foreground(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m broker.embedded` in a session of its own, as a terminal would start it."""
    command = [sys.executable, "-m", "broker.embedded", "--folder", str(tmp_path / "redis")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_says_where_it_is_until_it_is_stopped(
    foreground: subprocess.Popen[str], signum: signal.Signals
) -> None:
    assert foreground.stdout is not None
    assert foreground.stderr is not None
    url = foreground.stdout.readline().strip()
    with connect(BrokerSettings(), url) as client:
        info: Any = client.info("server")
        os.killpg(foreground.pid, signum)  # what Ctrl-C in a terminal does
        assert foreground.wait(EXIT_SECONDS) == 0
    assert foreground.stderr.read() == ""
    assert still_there(info["process_id"]) is False


def test_in_the_foreground_a_refusal_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "broker.embedded", "--folder", str(tmp_path), "--port", port]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"port {port} of 127.0.0.1 is in use: choose another, or 0 for any free one\n"
