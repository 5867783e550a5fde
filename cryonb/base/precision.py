"""How networks run fast on this machine: in which precision, and in memory that is used again."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

import torch

KEPT_BYTES = 2**30  # of freed memory at most
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@cache
def fast_precision() -> str:
    """Return "bf16" where the processor computes in it, else "no".

    What it can do, not how fast a trial ran: so that the load of a machine changes no result.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    can = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 has none
    return "bf16" if can.get("avx512_bf16") or can.get("amx_bf16") else "no"


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
