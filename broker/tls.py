"""Encryption on the way to Redis: what a recipe says of certificates, and what to do when they do not fit.

Invariant: over rediss:// the server's certificate and its name are always checked; no setting and no URL turns that
off. Refuses to know what is sent.
"""

from __future__ import annotations

import re
import ssl
from typing import Any

import redis

from broker.errors import Refused
from broker.settings import BrokerSettings

OLDEST = ssl.TLSVersion.TLSv1_2
SCHEME = "rediss://"


def options(settings: BrokerSettings, url: str) -> dict[str, Any]:
    """Arguments of a client for `url`; none where nothing is encrypted. Raises `Refused`."""
    if not url.startswith(SCHEME):
        return {}
    if re.search(r"[?&]ssl_", url):
        raise Refused("broker.url sets options of TLS", "take `ssl_…` out of it; broker.tls_ca names the CA to trust")
    files = {"ssl_ca_certs": settings.tls_ca, "ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}
    _must_load(settings)
    return {
        **{name: str(path) for name, path in files.items() if path is not None},
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_min_version": OLDEST,
    }


def refusal(client: redis.Redis, error: BaseException, where: str) -> tuple[str, str] | None:
    """Cause and remedy if `error`, met while connecting, is one of encryption; else None."""
    encrypted = issubclass(client.connection_pool.connection_class, redis.SSLConnection)
    text = " ".join([str(error), *(str(cause) for cause in _causes(error))])
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = re.search(r"certificate verify failed: ([^(\]]*)", text)
        return (
            f"the certificate of Redis at {where} is not to be trusted ({why[1].strip(' .') if why else 'unknown'})",
            "set broker.tls_ca to the PEM file of the CA that signed it, and use the host name that it is made out to",
        )
    if encrypted and any(word in text for word in ("WRONG_VERSION_NUMBER", "RECORD_LAYER", "timed out", "Timeout")):
        return (
            f"Redis at {where} does not answer in TLS",
            "start it with tls-port, correct broker.url, or write redis:// there where nothing is to be encrypted",
        )
    if encrypted and any(word in text for word in ("EOF occurred", "closed by server", "reset", "ALERT", "HANDSHAKE")):
        return (
            f"Redis at {where} hung up in the middle of TLS",
            "if it asks for a certificate of ours (tls-auth-clients), set broker.tls_cert and broker.tls_key",
        )
    if not encrypted and ("closed by server" in text or "Connection reset" in text):
        return (
            f"Redis at {where} hung up at the first word",
            "if that port speaks TLS, write rediss:// in broker.url and set broker.tls_ca",
        )
    return None


def _must_load(settings: BrokerSettings) -> None:
    """The files are there and hold what they should: said at the start, not by the first connection."""
    key, context = "tls_ca", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if settings.tls_ca is not None:
            context.load_verify_locations(settings.tls_ca)
        key = "tls_cert"
        if settings.tls_cert is not None:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:  # ssl.SSLError is one
        path = getattr(settings, key)
        reason = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "it is no such PEM file"
        raise Refused(f"cannot use broker.{key} {path} ({reason})", "name a PEM file") from None


def _causes(error: BaseException) -> list[BaseException]:
    cause = error.__cause__ or error.__context__
    return [cause, *_causes(cause)] if cause is not None else []
