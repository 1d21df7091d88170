"""The configuration of an embedded server.

Invariant: what it acknowledged survives it, nothing is evicted, and it listens on the loopback interface or on a socket
of its folder alone. Refuses to know processes.
"""

from __future__ import annotations

from pathlib import Path

HOST = "127.0.0.1"
SOCKET = "redis.sock"


def server_config(port: int, unix_socket: bool, password: str | None, acl_file: Path | None) -> str:
    """As the lines of redis.conf; paths are relative to the folder in which it runs. Port 0 is none."""
    lines = [f"bind {HOST}", f"port {port}", "daemonize no", 'logfile ""', 'save ""']
    lines += ["appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction"]
    if unix_socket:
        lines += [f"unixsocket {SOCKET}", "unixsocketperm 700"]
    if acl_file is not None:
        lines.append(f"aclfile {quoted(str(acl_file.absolute()))}")  # its users have passwords of their own
    elif password:
        lines.append(f"requirepass {quoted(password)}")
    return "\n".join([*lines, ""])


def quoted(text: str) -> str:
    """A string of redis.conf, whatever it contains."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'
