"""Which floating-point precision is fast on this machine."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import nn


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


def autocast(device: torch.device, precision: str | None = None) -> torch.autocast:
    """Context in which networks run in `precision`, by default the fast one."""
    bf16 = (precision or fast_precision()) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
