"""Candidates, one after the other, in the real sandbox: what they can do, and that each one ends."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from producer.sandbox import box
from producer.sandbox.box import MOST_BYTES, Sandbox, Unavailable
from producer.sandbox.literals import read
from producer.sandbox.nursery import OFFERED
from producer.sandbox.runner import encode
from tests.producer.sandbox.available import SECONDS, family, needs_lock, said

pytestmark = needs_lock

# -- what it is for ---------------------------------------------------------------------------------------------------


def test_each_call_is_answered_by_a_line(sandbox: Sandbox) -> None:
    code = "def f(a, b):\n    return a / b"
    lines = said(sandbox, code, "(6, 3)", "(1, 0)", "(1,)", "(3, 2)")
    assert lines == ["= 2.0", "! ZeroDivisionError", "! TypeError", "= 1.5"]


def test_arguments_of_one_call_are_not_those_of_the_next(sandbox: Sandbox) -> None:
    assert said(sandbox, "def f(a):\n    a.append(0)\n    return a", "([1],)", "([1],)") == ["= [1, 0]"] * 2


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import absent", "! ModuleNotFoundError"),
        ("def g(): return 1", "! AttributeError"),
        ("f = 3", "! TypeError"),
        ("raise KeyError", "! KeyError"),
        ("def f(): raise SystemExit(0)", "! SystemExit"),
        ("def f(): return f()", "! RecursionError"),
        ("def f(): return f", "! ValueError"),
        ("def f(): return input()", "! EOFError"),
        ("return 1", "! SyntaxError"),
        ("async def f(): return 1", "! ValueError"),
    ],
)
def test_a_program_that_does_not_work_says_so_for_each_call(sandbox: Sandbox, code: str, line: str) -> None:
    assert said(sandbox, code, "()", "()") == [line, line]


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("def f(): return 1\nraise SystemExit(0)", "= 1"),
        ("def f(): return 1\ninput()", "= 1"),
        ("def f(): return 1\nassert False", "! AssertionError"),
        ("def f(): return 1 / 0\nraise SystemExit(0)", "! ZeroDivisionError"),
        ("raise SystemExit(0)\ndef f(): return 1", "! SystemExit"),
        ("class Solution:\n    def f(self): return 1", "= 1"),
        ("class Solution:\n    def f(self): raise SystemExit(0)\nraise SystemExit(0)", "! SystemExit"),
        ("class Solution:\n    def __init__(self): self.n = 0\n    def f(self): self.n += 1; return self.n", "= 1"),
        ("class Solution:\n    def g(self): return 1", "! AttributeError"),
        ("class Solution:\n    def f(self): return 1\ndef f(): return 2", "= 2"),
        ("class Other:\n    def f(self): return 1", "! AttributeError"),
    ],
)
def test_the_function_counts_once_it_is_defined(sandbox: Sandbox, code: str, line: str) -> None:
    assert said(sandbox, code, "()", "()") == [line, line]


@pytest.mark.parametrize("name", OFFERED)
def test_what_is_offered_can_be_imported(sandbox: Sandbox, name: str) -> None:
    assert said(sandbox, f"import {name}\ndef f():\n    return 1") == ["= 1"]


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("import datetime; return datetime.datetime.strptime('3 May 2020', '%d %B %Y').month", 5),
        ("from dataclasses import dataclass\n    @dataclass\n    class P:\n        x: 'int'\n    return P(2).x", 2),
        ("import time; time.sleep(0.001); return time.time() > 0", True),
        ("import re; return re.findall(r'\\d+', 'a1b22')", ["1", "22"]),
        ("from collections import Counter; return Counter('aab').most_common(1)", [("a", 2)]),
        ("import hashlib; return hashlib.md5(b'').hexdigest()[:4]", "d41d"),
        ("from decimal import Decimal; return str(Decimal(1) / 3)[:5]", "0.333"),
        ("return 'é'.encode('latin-1'), b'a\\x00'.decode('utf-16-le')", (b"\xe9", "a")),
        ("print('noise'); import sys; print('more', file=sys.stderr); return 1", 1),
        ("return sum(i * i for i in range(10 ** 5))", 333328333350000),
        ("return len([0] * 10 ** 7)", 10**7),
        ("return __name__", "candidate"),
    ],
)
def test_ordinary_programs_work(sandbox: Sandbox, body: str, value: object) -> None:
    (line,) = said(sandbox, f"def f():\n    {body}")
    assert read(line.removeprefix("= ")) == value


def test_a_program_has_one_result_however_often_it_is_run() -> None:
    code = "import random\ndef f():\n    return random.random(), list({'a', 'b', 'c', 'd'})"
    results = set()
    for _ in range(3):
        sandbox = Sandbox()  # another interpreter each time
        results.add(said(sandbox, code)[0])
        sandbox.close()
    assert len(results) == 1


# -- how it ends ------------------------------------------------------------------------------------------------------

DEAF_AND_DUMB = "import contextlib, os\nfor n in range(9):\n    with contextlib.suppress(OSError): os.close(n)"
FOREVER = {
    "a loop": "def f():\n    while True: pass",
    "a sleep": "import time\ndef f(): time.sleep(1000)",
    "a loop at the start": "while True: pass",
    "a sum without a breath": "def f(): return sum(range(10 ** 12))",
    "deaf to every signal": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\ndef f():\n    while True: pass",
    "an end without an end": f"{DEAF_AND_DUMB}\nimport time\ndef f(): time.sleep(1000)",
    "a huge number": "def f(): return 10 ** 10 ** 8",
}


@pytest.mark.parametrize("name", FOREVER)
def test_a_candidate_that_goes_on_is_dead_and_gone_when_its_time_is_up(sandbox: Sandbox, name: str) -> None:
    said(sandbox, "def f(): return 1")
    before, started = family(), time.monotonic()
    assert said(sandbox, FOREVER[name], seconds=0.3) == []
    assert time.monotonic() - started < 5.0
    assert family() == before
    assert said(sandbox, "def f(): return 1") == ["= 1"]


def test_one_that_trickles_on_has_no_more_time_than_others() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a byte at a time
    with ours, theirs:
        for _ in range(100):
            theirs.send(b".")
        assert box._exchange(ours, b"request", seconds=0.0) == b"."


def test_what_was_said_before_the_time_was_up_counts(sandbox: Sandbox) -> None:
    code = "def f(n):\n    while n: pass\n    return n"
    assert said(sandbox, code, "(0,)", "(1,)", "(0,)", seconds=0.3) == ["= 0"]


@pytest.mark.parametrize(
    "code",
    [
        "import os\ndef f(): os._exit(0)",
        "import os\nos._exit(0)",
        "import ctypes\ndef f(): return ctypes.string_at(0)",
        f"{DEAF_AND_DUMB}\ndef f(): return 1",
    ],
)
def test_one_that_ends_itself_has_said_nothing(sandbox: Sandbox, code: str) -> None:
    assert said(sandbox, code) == []


def test_memory_without_end_is_an_error_of_its_own(sandbox: Sandbox) -> None:
    assert said(sandbox, "def f():\n    a = []\n    while True: a.append(bytes(1 << 22))") == ["! MemoryError"]


def test_one_that_says_too_much_has_said_nothing(sandbox: Sandbox) -> None:
    flood = (
        "import contextlib, os\ndef f():\n    for n in range(3, 9):\n        with contextlib.suppress(OSError):\n"
        "            while True: os.write(n, b'= 1\\n' * 9999)"
    )
    started = time.monotonic()
    assert said(sandbox, flood) == []
    assert time.monotonic() - started < SECONDS / 2, "nobody listens to the end"
    assert MOST_BYTES < 1 << 24


ASKER = """
from producer.sandbox.box import Sandbox
sandbox = Sandbox()
sandbox.run("def f(): return 1", "f", ["()"], 9)
print("ready", flush=True)
sandbox.run("def f():\\n  while True: pass", "f", ["()"], 600)
"""


def test_candidates_die_with_the_one_who_asked() -> None:
    """However it ends: the kernel sees to it."""
    asker = subprocess.Popen([sys.executable, "-c", ASKER], stdout=subprocess.PIPE, cwd=box.ROOT)
    assert asker.stdout is not None
    assert asker.stdout.readline() == b"ready\n"
    us = psutil.Process(asker.pid)
    while len(us.children(recursive=True)) < 2:
        time.sleep(0.01)
    below = us.children(recursive=True)
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    asker.stdout.close()
    _, left = psutil.wait_procs(below, timeout=10)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


# -- where it cannot be -----------------------------------------------------------------------------------------------


NO_SUCH_MODE = "from producer.sandbox import lock; lock.FILTER = 7; main()"


def test_a_kernel_that_refuses_the_filter_has_nothing_run(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [word.replace("main()", NO_SUCH_MODE) for word in box.COMMAND]
    monkeypatch.setattr(box, "COMMAND", command)
    with pytest.raises(Unavailable, match=r"not locked up \(open .*prctl 22: Invalid argument"):
        Sandbox().run("def f(): return 1", "f", ["()"], SECONDS)
    with pytest.raises(Unavailable, match="not locked up"):
        box.require()


def test_this_machine_locks() -> None:
    box.require()


def test_a_machine_that_we_do_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(Unavailable, match="linux on riscv64 has no filter that we know"):
        box.require()


def test_a_nursery_that_died_is_nobody_s_fault_and_followed_by_another() -> None:
    sandbox, before = Sandbox(), family()
    assert said(sandbox, "def f(): return 1") == ["= 1"]
    (nursery,) = family() - before
    os.kill(nursery, signal.SIGKILL)
    with pytest.raises(Unavailable, match="broken down"):
        said(sandbox, "def f(): return 1")
    assert said(sandbox, "def f(): return 1") == ["= 1"]
    sandbox.close()
    assert family() == before


def test_requests_travel_as_data() -> None:
    assert json.loads(encode("c", "f", ["(1,)"], 1.0)) == ["c", "f", ["(1,)"], 1.0]
