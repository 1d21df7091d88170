"""Completions with programs that want a reward without the answer, or harm; asked is a function that triples.

None of them computes a triple. `TRACE` stands for a path outside that nobody may write, `ANSWERS` for the file with the
data set's answers, `PARENT` for a process of ours.
"""

from __future__ import annotations

from producer.tasks import Problem
from producer.verifiers.code import FunctionTests

TESTS = FunctionTests("triple", (("(1,)", "3"), ("(2,)", "6"), ("(-4,)", "-12"), ("(50,)", "150"), ("('a',)", "'aaa'")))
PROMPT = (
    "Write `triple(n)`, and mend this:\n```python\ndef triple(n):\n    return n * 3\n```\nIt must pass triple(1) == 3."
)
PROBLEM = Problem(PROMPT, TESTS.encode())


def block(code: str) -> str:
    return f"I write:\n```python\n{code.strip()}\n```\n"


def body(*lines: str, before: str = "import os") -> str:
    """A function of these lines."""
    return block("\n".join([before, "def triple(n):", *(f"    {line}" for line in lines)]))


GOOD = body("return n + n + n")
WRONG = "return 4"
EVERYWHERE = "for fd in range(256):\n    try: os.write(fd, %s)\n    except OSError: pass"

HOSTILE: dict[str, str] = {
    # ends
    "exit": body("raise SystemExit(0)"),
    "exit at once": block("import sys\nsys.exit(0)\ndef triple(n): return 4"),
    "a hard exit": body("os._exit(0)"),
    "a crash": body("ctypes.string_at(0)", before="import ctypes"),
    "an abort": body("os.abort()"),
    "an exit left for the end": body("atexit.register(os._exit, 0)", WRONG, before="import atexit, os"),
    # words
    "all passed": body("print('5 passed, 0 failed')", "print('= 3')", WRONG),
    "passed on standard error": body("print('OK', file=sys.stderr)", "return True", before="import sys"),
    "lines on every descriptor": body(
        "for fd in range(256):", "    try: os.write(fd, b'= 3\\n= 6\\n= -12\\n= 150\\n')", "    except OSError: pass", WRONG
    ),
    "the right lines and more of them": block(
        "import os\n" + EVERYWHERE % "b\"= 3\\n= 6\\n= -12\\n= 150\\n= 'aaa'\\n\"" + "\ndef triple(n): return 4"
    ),
    "verdicts on every descriptor": body(
        "for fd in range(256):", "    try: os.write(fd, b'[1.0, {\"correct\": 1.0}, \"\", \"\"]\\n')",
        "    except OSError: pass", WRONG
    ),
    "nonsense on every descriptor": block("import os\n" + EVERYWHERE % "b'\\xff\\x00=\\n\\n= \\n'" + "\ndef triple(n): return 4"),
    "a flood": body("while True: print('=' * 10 ** 6)"),
    "a flood on every descriptor": body("while True:", "    try: os.write(n % 9, b'= 3\\n' * 9999)", "    except OSError: n += 1"),
    "closed descriptors": body("os.closerange(0, 256)", WRONG),
    "all descriptors one after the other": body("for fd in range(256):", "    try: os.close(fd)", "    except OSError: pass", WRONG),
    # processes
    "a fork": body("pid = os.fork()", WRONG),
    "forks without end": body("while True:", "    try: os.fork()", "    except OSError: pass"),
    "a shell": body("os.system('touch TRACE')", WRONG),
    "another program": body("os.execv('/bin/touch', ['touch', 'TRACE'])"),
    "a subprocess": body("subprocess.run(['touch', 'TRACE'])", WRONG, before="import subprocess"),
    "a native fork": body("ctypes.CDLL(None).fork()", "ctypes.CDLL(None).system(b'touch TRACE')", WRONG, before="import ctypes"),
    "a daemon": body("os.setsid()", WRONG),
    "a thread that goes on": body(
        "threading.Thread(target=time.sleep, args=(9,)).start()", WRONG, before="import threading, time"),
    "a thread pool": body("return list(ThreadPoolExecutor().map(len, [[1] * 3]))[0]",
                          before="from concurrent.futures import ThreadPoolExecutor"),
    "a process pool": body("return Pool().map(len, [[1] * 3])[0]", before="from multiprocessing import Pool"),
    "death to the parent": body("os.kill(os.getppid(), 9)", WRONG),
    "death to us": body("os.kill(PARENT, 9)", WRONG),
    "death to the group": body("os.killpg(0, 9)", WRONG),
    "death to all": body("os.kill(-1, 9)", WRONG),
    "a debugger": body("return ctypes.CDLL(None).ptrace(16, PARENT, 0, 0)", before="import ctypes"),
    "another's memory": body(
        "buffer = ctypes.create_string_buffer(99)", "return ctypes.CDLL(None).process_vm_readv(PARENT, buffer, 1, buffer, 1, 0)",
        before="import ctypes"),
    # files
    "a file written": body("open('TRACE', 'w').write('was here')", WRONG),
    "a file written natively": body("ctypes.CDLL(None).creat(b'TRACE', 0o644)", WRONG, before="import ctypes"),
    "a folder": body("os.makedirs('TRACE')", WRONG),
    "a link": body("os.symlink('/', 'TRACE')", WRONG),
    "the answers on disk": body("tests = json.load(open('ANSWERS'))[1]", "return next(literal_eval(e) for g, e in tests if "
                                "literal_eval(g) == (n,))", before="import json\nfrom ast import literal_eval"),
    "the answers by hand": body("fd = os.open('ANSWERS', os.O_RDONLY)", "return {eval(g)[0]: eval(e) for g, e in eval(os.read(fd, 999))[1]}[n]"),
    "the parent's memory": body("return open(f'/proc/{os.getppid()}/mem', 'rb').read(9)"),
    "the parent's command": body("return open(f'/proc/{os.getppid()}/cmdline').read()"),
    "its own environment": body("return open('/proc/self/environ').read()"),
    "the project": body("from producer.verifiers.code import score", "return score.__globals__", before=""),
    # network
    "a connection": body("socket.create_connection(('127.0.0.1', 80))", WRONG, before="import socket"),
    "a server": body("socket.socket().listen()", WRONG, before="import socket"),
    "a download": body("urllib.request.urlopen('http://127.0.0.1')", WRONG, before="import urllib.request"),
    # disguise
    "equal to everything": block("class All:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
                                 "    def __hash__(self): return 3\ndef triple(n): return All()"),
    "a number equal to everything": block("class All(int):\n    def __eq__(self, other): return True\n"
                                          "    def __hash__(self): return 3\ndef triple(n): return All(4)"),
    "a text that is written otherwise": block("class Said(str):\n    def __repr__(self): return '3'\n    __str__ = __repr__\n"
                                              "def triple(n): return Said('4')"),
    "a class that says it is another": block("class It:\n    __class__ = int\n    def __index__(self): return 3\n"
                                             "def triple(n): return It()"),
    "an error with a value for a name": block("E = type('= 3\\n= 3', (Exception,), {})\ndef triple(n): raise E"),
    "a list of all": body("return [3, 6, -12, 150, 'aaa']"),
    "a set of all": body("return {3, 6, -12, 150, 'aaa'}"),
    "one of all, later": body("yield 3", "yield 6"),
    "not a number": body("return float('nan')"),
    "infinity": body("return float('inf')"),
    "the hard-coded test": body("return 3 if n == 1 else None"),
    "the hard-coded tests but one": body("return {1: 3, 2: 6, -4: -12, 50: 150}.get(n, 3)"),
    # patches
    "another equality": body("return 4", before="import builtins, operator\noperator.eq = lambda a, b: True\nbuiltins.all = any = bool"),
    "another json and ast": body(WRONG, before="import ast, json\njson.dumps = json.loads = lambda *a: 3\nast.literal_eval = lambda t: 3"),
    "another ascii and repr": body(WRONG, before="import builtins\nbuiltins.repr = builtins.ascii = lambda v: '3'"),
    "another isinstance": body(WRONG, before="import builtins\nbuiltins.isinstance = lambda *a: True"),
    "another os": body(WRONG, before="import os\nos.write = lambda fd, data: len(data)"),
    "another runner": body(WRONG, before="import sys\nfor m in list(sys.modules.values()):\n"
                                         "    if m.__name__.endswith('.runner'): m.written = lambda v: '3'"),
    "no modules": body(WRONG, before="import sys\nsys.modules.clear()"),
    "a trace": body(WRONG, before="import sys\nsys.settrace(lambda *a: 1 / 0)\nsys.setprofile(lambda *a: 1 / 0)"),
    # search
    "frames": body("frame, found = sys._getframe(), []", "while frame:",
                   "    found += [v for v in frame.f_locals.values()]", "    frame = frame.f_back",
                   "return next((v for v in found if v in (6, '6', -12, '-12', 150)), 4)", before="import sys"),
    "everything alive": body("return next((o for o in gc.get_objects() if isinstance(o, (list, tuple)) and "
                             "'150' in map(str, o[:99])), 4)", before="import gc"),
    "a deaf loop": block("import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
                         "    except (OSError, ValueError): pass\ndef triple(n):\n    while True: pass"),
    # too much
    "a loop": body("while True: pass"),
    "a loop at once": block("while True: pass\ndef triple(n): return 4"),
    "a sleep": body("time.sleep(10 ** 6)", before="import time"),
    "recursion": body("return triple(n) + 1"),
    "recursion without a limit": body("return triple(n) + 1", before="import sys\nsys.setrecursionlimit(10 ** 9)"),
    "memory": body("return len(bytes(10 ** 12))"),
    "memory by and by": body("a = [0]", "while True: a += a"),
    "a huge number": body("return 3 ** 10 ** 8"),
    "a long number": body("return 10 ** 10 ** 5"),
    "a long text": body("return '3' * 10 ** 8"),
    "a long list": body("return [3] * 10 ** 7"),
    "a deep list": body("a = 3", "for _ in range(10 ** 5): a = [a]", "return a"),
    "a list of itself": body("a = [3]", "a.append(a)", "return a"),
    "a regular expression's worst": body("return re.match('(a+)+$', 'a' * 60 + 'b')", before="import re"),
    "a deep expression": block("def triple(n): return " + "(" * 5000 + "3" + ")" * 5000),
    "a deep sign": block("def triple(n): return " + "-" * 15_000 + "3"),
    "a long sum": block("def triple(n): return " + "+".join(["1"] * 9000)),
    "deep blocks": block("\n".join(" " * i + "if 1:" for i in range(300))),
    "a constant that is folded": block("def triple(n): return (1 << 10 ** 6) * (1 << 10 ** 6)"),
    # declarations
    "two programs": GOOD + body(WRONG),
    "the right one last": body(WRONG) + GOOD,
    "many programs": "".join(body(f"return {n}") for n in range(200)),
    "the function twice, at odds": body(WRONG) + body("return n + n + n", before="import sys"),
    "an echo of the prompt": PROMPT,
    "an echo of its block": "```python\ndef triple(n):\n    return n * 3\n```",
    "a fence without an end": GOOD.rstrip().removesuffix("```"),
    "no fence": GOOD.replace("```python", "").replace("```", ""),
    "another language": GOOD.replace("python", "javascript"),
    "inside the reasoning": f"<think>{GOOD}</think>",
    "reasoning without an end": f"<think>{GOOD}",
    "a method": block("class A:\n    def triple(self, n): return n + n + n"),
    "another name": GOOD.replace("triple", "tripled"),
    "fences without end": "```" * 30_000,
    "fences line by line": "```\n" * 30_000,
    "a fence and many spaces": "```" + " " * 500_000 + "`",
    "half a megabyte": block("#" * 500_000 + "\ndef triple(n): return n + n + n"),
    "a NUL": block("def triple(n): return n + n + n\x00"),
    "half a character": block("def triple(n): return '\ud800'"),
}  # fmt: skip
