"""Peak memory: of anything, and of log-probs and their gradient from hidden states on, whole and in chunks.

Invariant: each figure is what one computation added to what there was, by the peak of the process's resident set on a
CPU and by torch's allocator on a GPU; whole and chunks are each in a process of its own. Refuses to know the body.
"""

from __future__ import annotations

import ctypes
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from consumer.head import chosen_logprobs, chunk_for

TOKENS, VOCABULARY, WIDTH = 8192, 49152, 576


def peaks() -> dict[str, float]:
    """MiB that were added at the peak, by kind; each measured in a fresh process."""
    return {kind: float(_alone(kind)) for kind in ("whole", "chunks")}


def _alone(kind: str) -> str:
    command = [sys.executable, "-m", "benchmarks.memory", kind]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def added(work: Callable[[], object]) -> float:
    """MiB that `work` adds at its peak, in this process. Linux with glibc, or CUDA."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        ctypes.CDLL(None).malloc_trim(0)  # else what an earlier one has freed would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is resident
        before = _peak(device)
    work()
    return _peak(device) - before


def measure(kind: str) -> float:
    """MiB that forward and backward add to weights, hidden states and their gradients-to-be in this process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False, device=device)
    hidden = torch.randn(TOKENS, WIDTH, device=device, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), device=device)
    # The libraries' own threads and buffers are not what is measured.
    chosen_logprobs(head, hidden[:64], targets[:64], 1.0, 64)[0].sum().backward()
    head.weight.grad = hidden.grad = None
    before = _peak(device)
    chunk = TOKENS if kind == "whole" else chunk_for(VOCABULARY, device)
    chosen_logprobs(head, hidden, targets, 1.0, chunk)[0].sum().backward()
    return _peak(device) - before


def _peak(device: str) -> float:
    """MiB so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # its own: ru_maxrss of Linux starts from what the parent had when it forked
        return float(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of macOS, in bytes


if __name__ == "__main__":
    print(measure(sys.argv[1]))
