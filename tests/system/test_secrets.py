"""A password opens the door and shows nowhere, whichever way it was given: in no log and no refusal, in no file of the
run, no metric and no process list.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
import pytest

import consumer.recipe
import producer.__main__
from broker.cli import process_recipe
from broker.connection import connect, require
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from broker.loading import load
from broker.secret import read_secret
from broker.settings import BrokerSettings, RecipeBase
from deploy.prepare import prepare
from deploy.recipe import read
from monitoring.metrics import GeneratorMetrics
from monitoring.server import serve
from monitoring.settings import MonitoringSettings
from tests.deploy.test_launcher import RECIPE, Launch, files
from tests.ports import free_port

SECRET = "s3cr3t-that-opens-the-door"
WAYS = ("url", "environment", "file")
LOOK_SECONDS = 0.2  # a look costs what the run could do meanwhile


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("random:llama-tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), password=SECRET) as started:
        yield started


@pytest.fixture(params=WAYS)
def given(request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """Flags and environment that hold the password in one of three ways."""
    if request.param == "url":  # a user would rather write it into a recipe: the command line is for all to see
        return [], {"HEADRACE_BROKER__URL": server.url.replace("://", f"://:{SECRET}@")}
    if request.param == "environment":
        return ["--broker.url", server.url], {"HEADRACE_BROKER__PASSWORD": SECRET}
    (tmp_path / "password").write_text(SECRET + "\n")
    return ["--broker.url", server.url, "--broker.password_file", str(tmp_path / "password")], {}


def test_a_whole_run(
    given: tuple[list[str], dict[str, str]], server: EmbeddedServer, tmp_path: Path, model: Path
) -> None:
    flags, environ = given
    with connect(BrokerSettings(password=SECRET), server.url) as client:
        client.flushall()
    port, seen, shown = free_port(), set[str](), ""
    flags = [*flags, "--run.steps", "1", "--learner.eval_problems", "0", "--monitoring.learner_port", str(port)]
    runs = tmp_path / "runs"
    runs.mkdir()
    with Launch(runs, model, *flags, **environ) as launch:
        while not launch.ended(LOOK_SECONDS):
            for process in launch.family:
                with contextlib.suppress(psutil.Error):
                    seen.update(process.cmdline())
            shown += ask(port, "/metrics") + ask(port, "/healthz")
        assert launch.end() == 0, launch.said
        assert launch.steps() == [1]
        assert SECRET not in launch.said
    assert any("consumer" in part for part in seen)
    assert SECRET not in " ".join(seen)
    assert "headrace_learner_step" in shown
    assert SECRET not in shown
    for path, content in files(launch.folder).items():
        assert SECRET.encode() not in content, path


def ask(port: int, path: str) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except (OSError, HTTPException):  # not up yet, or gone already
        return ""
    finally:
        connection.close()


@pytest.mark.parametrize("kind", [consumer.recipe.ProcessRecipe, producer.__main__.ProcessRecipe])
def test_what_a_check_prints(
    given: tuple[list[str], dict[str, str]],
    kind: type[RecipeBase],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags, environ = given
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["headrace", RECIPE, "--check", *flags])
    with pytest.raises(SystemExit):
        process_recipe(kind, "headrace", "")
    whole = read(Path(RECIPE), flags)
    assert whole.broker.secret == SECRET
    assert '"broker"' in (printed := capsys.readouterr().out)
    assert SECRET not in printed + whole.toml() + repr(whole) + str(whole.plain())


def test_what_is_said_of_a_wrong_one(server: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wr0ng")
    for broker in (
        BrokerSettings(url=server.url.replace("://", "://:wr0ng@")),
        BrokerSettings(url=server.url, password="wr0ng"),
        BrokerSettings(url=server.url, password_file=tmp_path / "wrong"),
    ):
        assert broker.url
        with connect(broker, broker.url) as client, pytest.raises(Refused) as caught:
            require(client)
        assert "wrong user name or password" in str(caught.value)
        assert "wr0ng" not in f"{caught.value} {caught.value!r} {broker!r} {client!r}"


@pytest.mark.parametrize(
    "flags",
    [
        ["--broker.url=redis://:wr0/ng@host"],
        ["--broker.url=redis://me:wr0@ng@host"],
        ["--broker.url=redis://host?password=wr0ng"],
        ["--broker.password", "wr0", "ng"],
        ["--broker.password=wr0", "wr0ng"],
        ["--broker.password=wr0ng", "--broker.command_timeout=-1"],
    ],
)
def test_refusals_of_a_command_line_that_holds_one(flags: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        load(RecipeBase, Path(RECIPE), flags, {})
    assert "wr0" not in str(caught.value)
    assert "ng" not in str(caught.value).replace("--section.key", "").split()


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff\xfe", b"x" * 10_000])
def test_a_file_that_holds_no_password(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "password").write_bytes(content)
    with pytest.raises(Refused, match=r"broker\.password_file names a file that holds a password"):
        _ = BrokerSettings(password_file=tmp_path / "password").secret
    with pytest.raises(Refused, match=r"cannot read .*absent: No such file"):
        read_secret(tmp_path / "absent", "broker.password_file")


# -- the only listeners -----------------------------------------------------------------------------------------------


def test_metrics_are_for_this_machine_unless_told_otherwise() -> None:
    assert MonitoringSettings().host == "127.0.0.1"
    metrics, port = GeneratorMetrics(), free_port()
    server = serve(metrics, MonitoringSettings().host, port, metrics.health)
    try:
        (own,) = [c for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN" and c.laddr[1] == port]
        assert own.laddr[0] == "127.0.0.1"
        for path in ("/", "/metrics/", "/metrics?x", "/../metrics", "/debug", "/healthz/.."):
            assert status(port, "GET", path) == 404, path
        for method in ("POST", "PUT", "DELETE", "TRACE", "OPTIONS"):
            assert status(port, method, "/metrics") == 501
        assert status(port, "GET", "/metrics") == status(port, "GET", "/healthz") == 200
    finally:
        server.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def status(port: int, method: str, path: str) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()
