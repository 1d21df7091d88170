"""The process in which candidates are born: an interpreter that has imported what they may use, and forks.

Invariant: it runs nothing of theirs, reads neither what they are asked nor what they say, and has none of them alive
when it says that one has ended. Refuses to know programs, limits of time, and what anything is worth.

It exists because a fresh interpreter with these modules takes a tenth of a second, and a fork some milliseconds. It
speaks over the socket that it has for standard input: each message brings the channel of a candidate, the next ends it.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import signal
import socket
import sys

from producer.sandbox.lock import die_with
from producer.sandbox.runner import run

# What a candidate can import: nothing can be opened any more when it runs.
OFFERED = (
    *("abc", "argparse", "array", "ast", "asyncio", "atexit", "base64", "binascii", "bisect", "builtins", "calendar"),
    *("cmath", "codecs", "collections.abc", "concurrent.futures.thread", "contextlib", "contextvars", "copy", "csv"),
    *("dataclasses", "datetime", "decimal", "difflib", "doctest", "enum", "errno", "fractions", "functools", "gc"),
    *("graphlib", "hashlib", "heapq", "hmac", "html", "inspect", "io", "ipaddress", "itertools", "json", "keyword"),
    *("locale", "logging", "math", "numbers", "operator", "os", "pathlib", "pickle", "platform", "pprint", "queue"),
    *("random", "re", "reprlib", "secrets", "shlex", "shutil", "signal", "statistics", "string", "struct"),
    *("subprocess", "sys", "tempfile", "textwrap", "threading", "time", "timeit", "traceback", "types", "typing"),
    *("unicodedata", "unittest", "unittest.mock", "uuid", "warnings", "weakref", "zlib", "zoneinfo"),
)
BEHIND = (  # what those import as they run
    *("_strptime", "encodings.ascii", "encodings.cp1252", "encodings.hex_codec", "encodings.latin_1"),
    *("encodings.rot_13", "encodings.utf_16", "encodings.utf_16_be", "encodings.utf_16_le", "encodings.utf_32"),
    *("encodings.utf_32_be", "encodings.utf_32_le", "encodings.utf_8_sig"),
)
READY = b"ready"
MESSAGE = 500  # bytes of one


def main() -> None:
    """Serve until the socket closes."""
    control = socket.socket(fileno=os.dup(0))
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)  # takes the lowest number, 0
    try:
        die_with(int(sys.argv[2]))
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))  # the verifier's own limit is for one answer
        for name in (*OFFERED, *BEHIND):
            importlib.import_module(name)
    except (OSError, ImportError) as error:
        control.send(f"{type(error).__name__}: {error}".encode()[:MESSAGE])
        return
    gc.freeze()  # or every collection in a child copies all pages
    control.send(READY)
    serve(control)


def serve(control: socket.socket) -> None:
    """One candidate after the other."""
    parent = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE, 1)
        if not message:
            return
        child = os.fork()
        if child == 0:
            control.close()
            _life(descriptors[0], parent)
        os.close(descriptors[0])
        control.recv(MESSAGE)  # enough has been heard; or nobody listens any more
        os.kill(child, signal.SIGKILL)  # ours until it is reaped, so nobody else has its number
        os.waitpid(child, 0)
        control.send(READY)


def _life(channel: int, parent: int) -> None:
    """In the child, whatever happens."""
    try:
        run(channel, parent)
    finally:
        os._exit(0)
