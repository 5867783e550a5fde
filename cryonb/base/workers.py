"""Workers for work in many pieces: processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import psutil


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(psutil.Process, "cpu_affinity"):
        return len(psutil.Process().cpu_affinity())
    return os.cpu_count() or 1


def process_pool(workers: int, threads: int = 1) -> ProcessPoolExecutor:
    """Executor of so many processes, each of which computes on so many threads."""
    spawn = multiprocessing.get_context("spawn")  # a forked torch may hang
    return ProcessPoolExecutor(workers, spawn, _take_threads, (threads,))


def _take_threads(threads: int) -> None:
    import torch  # here, since whoever only counts cores need not wait for it

    torch.set_num_threads(threads)


def in_processes(call: Callable, n: int, workers: int) -> Iterator:
    """Yield ``call(0)``, ``call(1)``, ... ``call(n - 1)`` in order, made by so many processes.

    `call` must be something that can be pickled. Each process computes on one thread; with one
    worker all is done here.
    """
    if min(workers, n) <= 1:
        yield from map(call, range(n))
        return
    with process_pool(workers) as pool:
        yield from pool.map(call, range(n), chunksize=max(1, min(16, n // (4 * workers))))
