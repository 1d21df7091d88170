"""The kernel calls that a candidate may make, by their numbers on each architecture.

Invariant: what stands here gives a process memory, time, signals to itself and the descriptors that it already has, and
nothing else: none of these calls opens, starts, connects, signals or changes anything outside. Refuses to know how the
list is enforced. Numbers: `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` of Linux.
"""

from __future__ import annotations

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of <linux/audit.h>
X32 = 0x40000000  # on x86_64 the bit of another table of calls, of which none is allowed

_NUMBERS: dict[str, tuple[int, int]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "times": (100, 153),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}

# What `madvise` may be told, of <asm-generic/mman-common.h>: NORMAL to DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE. The rest
# is nothing that malloc says, and part of it is for root to break the machine with.
ADVICE = (0, 1, 2, 3, 4, 8, 14, 15)


def allowed(machine: str) -> list[int]:
    """The numbers on one of `MACHINES`."""
    column = list(MACHINES).index(machine)
    return sorted(numbers[column] for numbers in _NUMBERS.values())


def madvise(machine: str) -> int:
    """Its number: the one call whose argument matters."""
    return _NUMBERS["madvise"][list(MACHINES).index(machine)]
