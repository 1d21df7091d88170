"""Secrets that lie in files, as Kubernetes and other keepers of secrets hand them out.

Invariant: a secret is returned or refused, never shown: no message here holds a part of one, and a file made here is
its owner's alone from the first byte on. Refuses to know what a secret opens.
"""

from __future__ import annotations

import os
from pathlib import Path

from broker.errors import Refused

LONGEST = 4096  # bytes; more is no password but another file


def read_secret(path: Path, key: str) -> str:
    """The text in `path` without the line's end; `key` is what named the file. Raises `Refused`."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST + 1).decode().rstrip("\r\n")
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}", f"{key} names a file that holds a password") from None
    except ValueError:  # not UTF-8: what it says of itself would quote the bytes
        raise Refused(f"{path} holds no text", f"{key} names a file that holds a password") from None
    if not text or len(text) > LONGEST or len(text.splitlines()) > 1:
        raise Refused(f"{path} does not hold one line of text", f"{key} names a file that holds a password")
    return text


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in one step. Raises `OSError`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)  # it may have been there, with other rights
        file.write(text)
    scratch.rename(path)
