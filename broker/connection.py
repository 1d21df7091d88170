"""Clients of the broker, and the one look at a server before anything is entrusted to it.

Invariant: no client made here sends a command twice of its own accord, because one silently re-sent XADD made two
entries. Whoever passes a `Patience` says that what he sends may be repeated: everything in `streams`, `policy` and
`joining` may (scripts act on what is still pending only), transactions go through the fence instead.
Refuses to know keys, streams and what the commands are for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import redis
import structlog
import tenacity
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker import tls
from broker.errors import Refused
from broker.patience import Patience, elsewhere
from broker.settings import BrokerSettings

OLDEST = (7, 0)  # the first server with everything the scripts and streams use
UNREACHABLE = "start one, or correct broker.url"
LOADING_SECONDS = 120.0  # a server that was just restarted first reads its append-only file back

log = structlog.get_logger(__name__)


class PatientRedis(redis.Redis):
    """Waits for a server that is away. Its pipelines do not."""

    patience: Patience

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As its base class does, again and again."""
        return self.patience(partial(self._once, *args, **options))

    def _once(self, *args: Any, **options: Any) -> Any:
        command: Any = super().execute_command  # untyped there
        try:
            return command(*args, **options)
        except redis.ResponseError as error:
            if elsewhere(error):
                self.connection_pool.disconnect(inuse_connections=False)
            raise


def connect(
    settings: BrokerSettings, url: str, *, blocking_seconds: float = 0, patience: Patience | None = None
) -> redis.Redis:
    """A client with bytes responses; sends nothing before its first command. Raises `Refused` if `url` is no Redis URL.

    A client for commands that block up to `blocking_seconds` waits that much longer for replies than the others, so a
    full-length block is never mistaken for a dead server. Keep it apart from the client that sends everything else.
    """
    password = settings.secret
    options: dict[str, Any] = {"password": password} if password else {}
    options |= tls.options(settings, url)
    if not url.startswith("unix:"):
        options["socket_keepalive"] = True
    kind = redis.Redis if patience is None else PatientRedis
    try:
        client = kind.from_url(
            url,
            protocol=2,  # one shape of replies on every server, and no settings pushed by it
            retry=Retry(NoBackoff(), 0),
            socket_timeout=settings.command_timeout + blocking_seconds,
            socket_connect_timeout=settings.connect_timeout,
            **options,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # else an unknown option surfaced at the first command
    except (ValueError, TypeError):
        raise Refused(
            f"broker.url {redacted(url)} is not a Redis URL",
            "write redis://host:6379, rediss://host:6379 or unix:///path/to/socket; percent-encode special characters",
        ) from None
    if isinstance(client, PatientRedis) and patience is not None:
        client.patience = patience
        pool.connection_kwargs["redis_connect_func"] = partial(_greet, patience)
    return client


def _greet(patience: Patience, connection: Any) -> None:
    connection.on_connect()
    patience.connected()


def require(client: redis.Redis) -> str:
    """Refuse a server that cannot carry a run; returns its name and version for the log. Raises `Refused`."""
    where = address(client)
    try:
        _ping(client)
        info: Any = client.info()
    except redis.BusyLoadingError:
        raise Refused(
            f"Redis at {where} is still loading its data after {LOADING_SECONDS:.0f} s", "start again"
        ) from None
    except redis.AuthenticationError as error:
        raise Refused(*_authentication(str(error), where)) from None
    except redis.exceptions.NoPermissionError as error:
        raise Refused(f"Redis at {where} refuses this user: {error}", "allow it PING and INFO") from None
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise Refused(
            *(tls.refusal(client, error, where) or (f"no Redis at {where} ({_reason(error)})", UNREACHABLE))
        ) from None
    except redis.RedisError as error:
        raise Refused(f"what answers at {where} is not a usable Redis: {str(error)[:120]}") from None
    return fit(info, where)


def fit(info: Mapping[str, Any], where: str) -> str:
    """Judge a server by its INFO; returns its name and version, or raises `Refused`. Warns where a crash loses data."""
    name, version = server_version(info)
    if tuple(version[:2]) < OLDEST:
        found = ".".join(map(str, version)) or "of unknown version"
        raise Refused(f"{name} {found} at {where} is too old", "use Redis 7.0 or newer, or any Valkey")
    if info.get("redis_mode", "standalone") == "cluster":
        raise Refused(f"{name} at {where} is a cluster", "a run's transactions span keys: use a single server")
    if info.get("role", "master") != "master":
        raise Refused(f"{name} at {where} is a read-only replica", "point broker.url at its primary")
    policy = info.get("maxmemory_policy", "noeviction")
    if int(info.get("maxmemory", 0)) > 0 and policy != "noeviction":
        raise Refused(
            f"{name} at {where} evicts keys when memory is full (maxmemory-policy {policy})",
            "set maxmemory-policy noeviction: evicted tickets would be lost without a trace",
        )
    if not int(info.get("aof_enabled", 0)):
        log.warning("redis forgets when it crashes", where=where, remedy="set appendonly yes, appendfsync everysec")
    return f"{name} {'.'.join(map(str, version))}"


def server_version(info: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Name and version of a server from its INFO; Valkey also reports the Redis version that it is compatible with."""
    name = "Valkey" if "valkey_version" in info else "Redis"
    return name, version_numbers(str(info.get("valkey_version", info.get("redis_version", ""))))


def version_numbers(text: str) -> tuple[int, ...]:
    """`7.0.15` and the like as numbers; () if there is no version in `text`."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def redacted(url: str) -> str:
    """`url` without its password, for people to read. Hides too much rather than too little."""
    hidden = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    return re.sub(r"(password=)[^&]*", r"\1***", hidden, flags=re.IGNORECASE)


def address(client: redis.Redis) -> str:
    """`host:port`, or the path of the unix socket."""
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(redis.BusyLoadingError),
    wait=tenacity.wait_exponential(0.05, max=1.0),
    stop=tenacity.stop_after_delay(LOADING_SECONDS),
    reraise=True,
)
def _ping(client: redis.Redis) -> None:
    client.ping()


def _authentication(message: str, where: str) -> tuple[str, str]:
    remedy = "set HEADRACE_BROKER__PASSWORD or broker.password_file"
    if "without any password" in message.lower():
        return (
            f"Redis at {where} has no password, but one was given",
            "unset HEADRACE_BROKER__PASSWORD and broker.password",
        )
    if "required" in message.lower() or "noauth" in message.lower():
        return f"Redis at {where} wants a password", remedy
    return f"wrong user name or password for Redis at {where}", remedy


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__
    return str(cause.strerror) if isinstance(cause, OSError) and cause.strerror else str(error)[:120]
