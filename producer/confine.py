"""What a verifier's process may use up, and that it reaches no network.

Invariant: after `confine`, whatever runs in this process takes no more memory, disk or processor time than its share,
leaves no core dump and, where it says so, has no network but its own, in which there is nobody. Refuses to know what
runs. Linux keeps all of it, macOS neither the limit on memory nor the one on the network.

The network is cut by moving into a network namespace of our own. Inside a user namespace, which comes with it, root is
nobody outside: it can neither go back nor read the environment of the process that started us.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

MEMORY_BYTES = 4 << 30
FILE_BYTES = 64 << 20
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # of <sched.h>


def confine() -> str:
    """Set the limits that hold for as long as the process lives; '' if it has no network now, else why it still has.

    To be called before anything starts a thread: who has two cannot move.
    """
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    if sys.platform != "linux":  # elsewhere the kernel keeps no limit on address space and has no namespaces
        return f"{sys.platform} cannot take it away"
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    return _leave_the_network()


def allow_processor(seconds: float) -> None:
    """From now on `seconds` more of processor time, all threads together; then the kernel ends the process (SIGXCPU).

    A limit on the whole life would end an old worker in the middle of a good answer, so each answer renews it.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _leave_the_network() -> str:
    user, group = os.getuid(), os.getgid()
    if why := _unshare(NEW_USER | NEW_NETWORK):  # root in a container may do the second and not the first
        return why if _unshare(NEW_NETWORK) else ""
    for name, text in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError:
            continue  # then we go by the number of nobody, which costs nothing here
    return ""


def _unshare(what: int) -> str:
    call = ctypes.CDLL(None, use_errno=True).unshare
    return "" if call(what) == 0 else os.strerror(ctypes.get_errno())
