"""The allocator keeps what is freed: after a while a tensor of the same size touches no fresh page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In a process of its own: there is no way back. It takes a few tensors until small objects have found other places.
FAULTS = """
import resource, torch
from broker.heap import keep_what_is_freed

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(fresh_pages() for _ in range(5)))
assert keep_what_is_freed()
print(min([fresh_pages() for _ in range(30)][-5:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_a_tensor_has_freed_a_later_one_gets() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    usual, kept = map(int, done.stdout.split())
    assert usual > 20, "huge pages or small ones, they are fresh"
    assert kept <= 5
