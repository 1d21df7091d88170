"""The lock on a process that is about to run a candidate: limits, and a list of the kernel calls that are left to it.

Invariant: after `lock` nothing in this process, native code included, can open or write a file, reach a network, start
or signal a process, or outlive its parent; root is nobody; and nothing takes that back. Where the kernel does not do
its part, `lock` raises: there is no half of it. Refuses to know what will run.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
from collections.abc import Sequence

from producer.sandbox.syscalls import ADVICE, MACHINES, X32, allowed, madvise

MEMORY_BYTES = 512 << 20  # of address space, the interpreter's own 60 MiB included

DIE_WITH_PARENT, NO_NEW_PRIVILEGES, SECCOMP = 1, 38, 22  # PR_* of <linux/prctl.h>
FILTER = 2  # SECCOMP_MODE_FILTER
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # SECCOMP_RET_*; the last with EPERM
LOAD, JUMP_IF_EQUAL, JUMP_IF_NOT_LESS, RETURN = 0x20, 0x15, 0x35, 0x06  # of <linux/bpf_common.h>
NUMBER_AT, MACHINE_AT, THIRD_AT = 0, 4, 32  # in struct seccomp_data; the third argument, its lower half
CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
Step = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def lock(seconds: float, parent: int) -> None:
    """Take everything away for good; `seconds` of processor time are left. Raises `OSError`."""
    die_with(parent)
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,  # those that are open stay so
    }
    for what, most in limits.items():
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    _be_nobody()
    instructions = program(platform.machine())
    filter_ = _Program(len(instructions) // 8, instructions)
    _control(NO_NEW_PRIVILEGES, 1)  # without it the kernel takes a filter from root only
    _control(SECCOMP, FILTER, ctypes.addressof(filter_))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Raises `OSError`, also where it has ended already."""
    _control(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent has ended")


def program(machine: str) -> bytes:
    """The filter: kill who speaks to another architecture's table, allow what is listed, refuse the rest with EPERM."""
    advice = [(LOAD, 0, 0, THIRD_AT), *_one_of(ADVICE)]
    steps = [
        (LOAD, 0, 0, MACHINE_AT),
        (JUMP_IF_EQUAL, 1, 0, MACHINES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (JUMP_IF_NOT_LESS, 0, 1, X32),
        (RETURN, 0, 0, REFUSE),
        (JUMP_IF_EQUAL, 0, len(advice), madvise(machine)),
        *advice,
        *_one_of(allowed(machine)),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _one_of(values: Sequence[int]) -> list[Step]:
    """The last steps of a filter: allow where one of `values` is loaded, refuse the rest."""
    jumps = [(JUMP_IF_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*jumps, (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]


def _be_nobody() -> None:
    """Give up every capability: what is left of root is its number. Raises `OSError`."""
    header = struct.pack("Ii", CAPABILITIES, 0)
    none = bytes(24)  # effective, permitted and inheritable, each in two halves
    if ctypes.CDLL(None, use_errno=True).capset(header, none) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def _control(option: int, *values: int) -> None:
    call = ctypes.CDLL(None, use_errno=True).prctl
    given = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if call(option, *given) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
