"""The lock: what a candidate cannot do, asked of the kernel itself."""

from __future__ import annotations

import errno
import os
import platform
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from producer.sandbox.box import Sandbox
from producer.sandbox.syscalls import ADVICE, allowed
from tests.producer.sandbox.available import SECONDS, family, needs_lock, said

pytestmark = needs_lock
ASK_THE_KERNEL = """
import ctypes
kernel = ctypes.CDLL(None, use_errno=True).syscall
def ask(number):
    ctypes.set_errno(0)
    given = [ctypes.c_long(-1)] * 6
    return kernel(ctypes.c_long(number), *given), ctypes.get_errno()
"""
ADVISE = """
import ctypes
c = ctypes.CDLL(None, use_errno=True)
c.mmap.restype = ctypes.c_void_p
where = c.mmap(None, ctypes.c_long(4096), 3, 0x22, -1, ctypes.c_long(0))
def advise(what):
    ctypes.set_errno(0)
    return c.madvise(ctypes.c_void_p(where), ctypes.c_long(4096), what), ctypes.get_errno()
"""
OTHER_ADVICE = (9, 10, 11, 12, 13, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 100, 101, -1, 1 << 31)
ANSWERED_BY_DEATH = (335, 336)  # uretprobe and uprobe of x86: no filter is asked, whoever calls them has SIGILL
RETURN_1 = "b801000000c3"  # mov eax, 1; ret
INT80 = "b814000000cd80c3"  # mov eax, 20 (getpid of the other table); int 0x80; ret
NATIVE = """
import ctypes
def f():
    c = ctypes.CDLL(None)
    c.mmap.restype = ctypes.c_void_p
    where = c.mmap(None, ctypes.c_long(4096), 7, 0x22, -1, ctypes.c_long(0))  # to read, write and run; of nobody's file
    ctypes.memmove(where, bytes.fromhex(CODE), len(CODE) // 2)
    return ctypes.CFUNCTYPE(ctypes.c_int)(where)()
"""


def test_the_kernel_refuses_every_call_that_is_not_listed(sandbox: Sandbox) -> None:
    numbers = [n for n in range(600) if n not in {*allowed(platform.machine()), *ANSWERED_BY_DEATH}]
    lines = sandbox.run(ASK_THE_KERNEL, "ask", [f"({n},)" for n in numbers], SECONDS)
    refused = f"= (-1, {errno.EPERM})"
    assert [n for n, line in zip(numbers, lines, strict=True) if line != refused] == []


def test_memory_can_be_given_back_and_nothing_else_advised(sandbox: Sandbox) -> None:
    """Least of all what takes a page of the machine for broken (100, 101)."""
    lines = sandbox.run(ADVISE, "advise", [f"({n},)" for n in (*ADVICE, *OTHER_ADVICE)], SECONDS)
    taken, refused = lines[: len(ADVICE)], lines[len(ADVICE) :]
    assert [line for line in taken if line not in {"= (0, 0)", f"= (-1, {errno.EINVAL})"}] == []
    assert lines[4] == "= (0, 0)"
    assert set(refused) == {f"= (-1, {errno.EPERM})"}


def test_root_is_nobody_and_goes_first_where_memory_runs_out(sandbox: Sandbox) -> None:
    said(sandbox, "def f(): return 1")
    before = family()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(said, sandbox, "import time\ndef f(): time.sleep(9)", seconds=2.0)
        while not (born := family() - before):
            time.sleep(0.01)
        (candidate,) = born
        time.sleep(0.5)  # it locks itself up meanwhile
        status = Path(f"/proc/{candidate}/status").read_text()
        score = Path(f"/proc/{candidate}/oom_score_adj").read_text()
        assert running.result() == []
    held = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Cap"))
    assert {held[name] for name in ("CapInh", "CapPrm", "CapEff")} == {"0" * 16}
    assert score == "1000\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other tables of calls are those of x86")
def test_other_tables_of_calls_are_shut(sandbox: Sandbox) -> None:
    assert sandbox.run(ASK_THE_KERNEL, "ask", [f"({0x40000000 + 39},)"], SECONDS) == [f"= (-1, {errno.EPERM})"]
    assert said(sandbox, NATIVE + f"CODE = '{RETURN_1}'") == ["= 1"]
    assert said(sandbox, NATIVE + f"CODE = '{INT80}'") == [], "it is killed on the spot"


def test_neither_files_nor_folders_can_be_opened_read_or_made(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text("the answer")
    made = tmp_path / "made"
    for act in (
        f"open({str(secret)!r}).read()",
        f"open({str(made)!r}, 'w').write('x')",
        f"os.open({str(made)!r}, os.O_CREAT | os.O_WRONLY)",
        f"os.listdir({str(tmp_path)!r})",
        f"os.stat({str(secret)!r})",
        f"os.remove({str(secret)!r})",
        f"os.mkdir({str(made)!r})",
        f"os.symlink('/', {str(made)!r})",
        "open('/proc/self/environ').read()",
        f"open('/proc/{os.getpid()}/mem', 'rb')",
        "os.memfd_create('x')",
    ):
        assert said(sandbox, f"import os\ndef f():\n    return {act}") == ["! PermissionError"], act
    assert [path.name for path in tmp_path.iterdir()] == ["secret.jsonl"]
    assert secret.read_text() == "the answer"


def test_nobody_can_be_reached_started_or_signalled(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        for act, error in (
            (f"socket.socket().connect(('127.0.0.1', {server.getsockname()[1]}))", "PermissionError"),
            ("socket.socketpair()", "PermissionError"),
            ("os.fork()", "PermissionError"),
            ("os.execv('/bin/true', ['true'])", "PermissionError"),
            ("os.posix_spawn('/bin/true', ['true'], {})", "PermissionError"),
            (f"os.kill({os.getpid()}, 9)", "PermissionError"),
            ("os.kill(os.getppid(), 9)", "PermissionError"),
            ("os.killpg(0, 9)", "PermissionError"),
            ("os.setsid()", "PermissionError"),
            ("threading.Thread(target=print).start()", "RuntimeError"),
        ):
            code = f"import os, socket, threading\ndef f():\n    return {act}"
            assert said(sandbox, code) == [f"! {error}"], act
        with pytest.raises(BlockingIOError):
            server.accept()


def test_it_has_neither_our_environment_nor_our_descriptors(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_BROKER__PASSWORD", "secret")
    lines = said(sandbox, "import os, sys\ndef f():\n    return dict(os.environ), sys.argv[1:], sys.path")
    assert "secret" not in lines[0]
    look = "import os\ndef f(n):\n    try: os.lseek(n, 0, 1)\n    except OSError as error: return error.errno"
    lines = said(sandbox, look, *(f"({n},)" for n in range(3, 256)))
    assert [line for line in lines if line != f"= {errno.EBADF}"] == [f"= {errno.ESPIPE}"], "the channel, nothing else"
