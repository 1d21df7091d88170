"""What is done to files on disk, whatever is in them.

Invariant: a full disk is an `OSError` with ENOSPC that names what had no room, whichever library met it.
Refuses to know what a file is for.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def disk_full(error: BaseException) -> bool:
    """Python says it with an errno, the libraries written in Rust (safetensors) only in their message."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)


@contextmanager
def room_for(what: str, folder: Path) -> Iterator[None]:
    """What the block raises because the disk is full becomes an `OSError` (ENOSPC) that names `what` and `folder`."""
    try:
        yield
    except Exception as error:
        if disk_full(error):
            raise OSError(errno.ENOSPC, f"no space left for {what}", str(folder)) from error
        raise


def flush(path: Path) -> None:
    """Bring a file's content, or a folder's names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Make `text` the content of `path`, durably: whatever happens, it is the old content or this one."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    flush(fresh)
    fresh.rename(path)
    flush(path.parent)


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
