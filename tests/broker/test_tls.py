"""Redis over TLS: what is meant to be encrypted is, whoever answers proves who it is, and a mistake is one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from broker import acl, tls
from broker.connection import connect, require
from broker.embedded import EmbeddedServer
from broker.errors import Refused
from broker.keys import Keys
from broker.ledger import Ledger
from broker.loading import load
from broker.schema import Ticket
from broker.settings import BrokerSettings, RecipeBase
from broker.streams import RolloutStream, create_groups
from broker.tickets import TicketStream
from tests.broker.refusal import refusal
from tests.broker.test_streams import group_of
from tests.broker.tls_server import Encrypted, tls_server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """A TLS server whose users come from the ACL file, as one on a network should be."""
    folder = tmp_path_factory.mktemp("tls")
    with tls_server(folder, "--aclfile", str(acl.write(folder / "secrets", environ={}))) as server:
        yield server


def client(server: Encrypted, user: str, **settings: Any) -> redis_library.Redis:
    broker = BrokerSettings(
        url=server.url.replace("://", f"://{user}@"),
        password_file=server.folder / "secrets" / f"{user}.password",
        **{"tls_ca": server.ca, **settings},
    )
    assert broker.url
    return connect(broker, broker.url, blocking_seconds=1.0)


def test_a_group_travels_encrypted(encrypted: Encrypted) -> None:
    keys = Keys("tls")
    with client(encrypted, "learner") as learner, client(encrypted, "generator") as generator:
        assert "7." in require(learner) or "8." in require(learner)
        require(generator)
        create_groups(learner, keys)
        ledger = Ledger(learner, keys)
        ledger.fence.take_over()
        with ledger.transaction() as pipe:
            ledger.issue(pipe, [Ticket("t0000000000", 0, 7, 0)])
        stream = TicketStream(generator, generator, keys, "one", 60.0, 3)
        (claim,) = stream.claim(1, block_seconds=0.2)
        assert stream.publish(claim, group_of(claim, "one"))
        (arrived,) = RolloutStream(learner, learner, keys).claim(1, 0.2)
        assert arrived.ticket_id == "t0000000000"
        assert arrived.group is not None
    connection = learner.connection_pool.make_connection()
    connection.connect()
    assert connection._sock.version() in ("TLSv1.2", "TLSv1.3")
    connection.disconnect()


def test_a_ca_that_signed_nothing(encrypted: Encrypted) -> None:
    line = refusal(client(encrypted, "learner", tls_ca=encrypted.folder / "wrong.pem"))
    assert f"the certificate of Redis at 127.0.0.1:{encrypted.port} is not to be trusted" in line
    assert "set broker.tls_ca to the PEM file of the CA that signed it" in line


def test_the_system_s_cas_do_not_know_it(encrypted: Encrypted) -> None:
    assert "is not to be trusted" in refusal(client(encrypted, "learner", tls_ca=None))


def test_a_certificate_made_out_to_another_name(encrypted: Encrypted) -> None:
    elsewhere = Encrypted(encrypted.port, encrypted.folder)
    url = elsewhere.url.replace("127.0.0.1", "localhost")
    line = refusal(connect(BrokerSettings(tls_ca=encrypted.ca), url))
    assert "is not to be trusted" in line
    assert "the host name that it is made out to" in line


def test_plain_words_to_a_port_that_speaks_tls(encrypted: Encrypted) -> None:
    line = refusal(connect(BrokerSettings(), f"redis://127.0.0.1:{encrypted.port}"))
    assert "hung up at the first word: if that port speaks TLS, write rediss:// in broker.url" in line


def test_tls_to_a_port_that_speaks_plainly(redis_server: EmbeddedServer) -> None:
    url = redis_server.url.replace("redis://", "rediss://")
    assert "does not answer in TLS" in refusal(connect(BrokerSettings(command_timeout=1, connect_timeout=1), url))


def test_a_server_that_asks_who_we_are(tmp_path: Path) -> None:
    with tls_server(tmp_path, "--tls-auth-clients", "yes") as server:
        line = refusal(connect(BrokerSettings(tls_ca=server.ca), server.url))
        assert "hung up in the middle of TLS: if it asks for a certificate of ours" in line
        own = BrokerSettings(tls_ca=server.ca, tls_cert=tmp_path / "server.pem", tls_key=tmp_path / "server.key")
        with connect(own, server.url) as known:
            require(known)


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false", "db=0&ssl_cert_reqs=optional"])
def test_no_url_turns_the_check_off(option: str) -> None:
    with pytest.raises(Refused, match="sets options of TLS"):
        connect(BrokerSettings(), f"rediss://host?{option}")


def test_verification_is_on_whatever_is_set() -> None:
    for settings in (BrokerSettings(), BrokerSettings(password="x")):
        options = tls.options(settings, "rediss://host")
        assert (options["ssl_cert_reqs"], options["ssl_check_hostname"]) == ("required", True)
    assert tls.options(BrokerSettings(), "redis://host") == {}


def test_a_ca_that_is_absent_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"cannot use broker\.tls_ca .*absent\.pem \(No such file"):
        connect(BrokerSettings(tls_ca=tmp_path / "absent.pem"), "rediss://host")
    (tmp_path / "text.pem").write_text("not a certificate")
    with pytest.raises(Refused, match=r"it is no such PEM file"):
        connect(BrokerSettings(tls_ca=tmp_path / "text.pem"), "rediss://host")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--broker.url=redis://host", "--broker.tls_ca=ca.pem"], "nothing would be encrypted"),
        (["--broker.url=rediss://host", "--broker.tls_cert=x.pem"], "tls_cert and tls_key belong together"),
    ],
)
def test_settings_that_contradict_each_other(flags: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        load(RecipeBase, ROOT / "recipes" / "tiny.toml", flags, {})
