"""How networks run fast on this machine: in which precision, and in memory that is used again."""

from __future__ import annotations

import ctypes
import platform
import time
from functools import cache

import torch
from torch import nn

KEPT_BYTES = 2**30  # of freed memory at most
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@cache
def fast_precision() -> str:
    """Return "bf16" where it is found faster than float32 in a short trial, else "no"."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    x, conv = torch.ones(16, 64, 16, 16), nn.Conv2d(64, 64, 3, padding=1)
    x = x.contiguous(memory_format=torch.channels_last)
    seconds = {}
    for bf16 in (False, True):
        trials = []
        for _ in range(4):
            start = time.perf_counter()
            with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                conv(x).sum().backward()
            trials.append(time.perf_counter() - start)
        seconds[bf16] = min(trials)
    return "bf16" if seconds[True] < 0.8 * seconds[False] else "no"


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep up to `KEPT_BYTES` of freed memory for what comes next; whether it does.

    Left to itself it may return a network's activations to the system after every step, and get
    them back page by page and zeroed: up to a tenth of the time on a CPU, less where large arrays
    were freed before, which makes it more generous. Results stay the same.
    """
    if platform.system() != "Linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    largest = 2**25  # from the heap; what is larger is mapped apart, as glibc does by itself
    return bool(mallopt(M_MMAP_THRESHOLD, largest) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def autocast(device: torch.device, precision: str | None = None) -> torch.autocast:
    """Context in which networks run, in `precision` or else the fast one; keeps freed memory."""
    keep_freed_memory()
    bf16 = (precision or fast_precision()) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
