"""Say in plain words whether this machine is ready for the notebooks."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import NamedTuple

import psutil

MEMORY_GB = 3.0  # what `make tutorial` stays under
DISK_GB = 2.0


class Item(NamedTuple):
    """One line of the report; `advice` says what to do, or is empty."""

    name: str
    value: str
    ok: bool
    advice: str


def environment_report(folder: str | Path = ".") -> list[Item]:
    """Check Python, packages, processor, memory, GPU, disk, write permission and RELION.

    Runs are going to be written in `folder`. What is only useful is ok when it is missing.
    """
    import torch

    from cryonb.base.precision import fast_precision

    memory_GB = psutil.virtual_memory().available / 1e9
    disk_GB = shutil.disk_usage(folder).free / 1e9
    threads = f"{torch.__version__}, {torch.get_num_threads()} threads"
    cores, relion = os.cpu_count() or 1, shutil.which("relion_reconstruct")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    bf16 = fast_precision() == "bf16"
    more_memory = "close other programs, or take PROFILE=smoke"
    more_room = "free some space here, or work in another folder"
    no_relion = "06 can ask it, tests do: apt install relion"
    bits = "in hardware" if bf16 else "not in hardware"
    return [
        _needed(
            "Python", platform.python_version(), sys.version_info >= (3, 11), "take 3.11 or newer"
        ),
        _packages(),
        _needed("torch", threads, True),
        _needed("memory", f"{memory_GB:.1f} GB free", memory_GB >= MEMORY_GB, more_memory),
        _needed("disk", f"{disk_GB:.1f} GB free", disk_GB >= DISK_GB, more_room),
        _writing(folder),
        _useful("cores", str(cores), cores > 1, "times are stated for two cores"),
        _useful("bf16", bits, bf16, "training takes float32, which is slower"),
        _useful("GPU", gpu or "none", gpu, "only PROFILE=paper needs one"),
        _useful("RELION", relion or "not found", relion, no_relion),
    ]


def _needed(name: str, value: str, there, advice: str = "") -> Item:
    return Item(name, value, bool(there), "" if there else advice)


def _useful(name: str, value: str, there, advice: str) -> Item:
    return _needed(name, value, there, advice)._replace(ok=True)


def _packages() -> Item:
    try:
        needed = [re.match(r"[\w.-]+", r)[0] for r in requires("cryonb") if "extra ==" not in r]
    except PackageNotFoundError:
        return _needed(
            "packages", "cryonb is not installed", False, "pip install -e . in its folder"
        )
    missing = [name for name in needed if not _installed(name)]
    found = f"{len(needed) - len(missing)} of {len(needed)}, cryonb {version('cryonb')}"
    return _needed("packages", found, not missing, f"pip install {' '.join(missing)}")


def _installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def _writing(folder: str | Path) -> Item:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return _needed("writing", "allowed", True)
    except OSError as error:
        advice = "go to a folder that is yours, or name one with --run-dir"
        return _needed("writing", error.strerror or str(error), False, advice)


def span(seconds: float) -> str:
    """A duration in words that fit its size."""
    return f"{seconds:.0f}\xa0s" if seconds < 90 else f"{seconds / 60:.0f}\xa0min"
