"""Memory that is freed stays with the process, for the next tensor or message of that size.

Invariant: it changes how long allocations take, and no result. Refuses to know what is allocated.

glibc gives every block above 32 MiB back to the kernel as it is freed, and asks for a new one each time: a step of a
135M model then touches half a million fresh pages, an eighth of its time. So it does with its heap's end whenever some
groups have been sent: half of what sending 64 KB took. The peak of resident memory is the same.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
NEVER = 2**31 - 1
PAD = 64 << 20  # bytes that the heap grows by, at least


def keep_what_is_freed() -> bool:
    """From now on, in this process; False where its allocator is not glibc's, which goes on as it is."""
    if platform.libc_ver()[0] != "glibc":
        return False
    options = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: PAD}
    return all(ctypes.CDLL(None).mallopt(option, value) for option, value in options.items())
