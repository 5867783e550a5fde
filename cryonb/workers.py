"""Who works on what is done in many pieces: the cores of this machine, or a dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from distributed import Client

INSTALL = "pip install 'cryonb[cluster]'"


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(psutil.Process, "cpu_affinity"):
        return len(psutil.Process().cpu_affinity())
    return os.cpu_count() or 1


@contextmanager
def connect(scheduler) -> Iterator[Client]:
    """Give a client of a dask scheduler: an address ``tcp://host:8786``, or a cluster.

    Raises
    ------
    ValueError
        Dask is not installed.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(f"a cluster needs dask: {INSTALL}") from None
    with Client(scheduler, timeout=20) as client:
        yield client
