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

    memory_GB, disk_GB = (
        psutil.virtual_memory().available / 1e9,
        shutil.disk_usage(folder).free / 1e9,
    )
    threads = f"{torch.__version__}, {torch.get_num_threads()} threads"
    cores, relion = os.cpu_count() or 1, shutil.which("relion_reconstruct")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    bf16 = fast_precision() == "bf16"
    room = "free some space here, or work in another folder"
    needed = [  # name, what was found, whether that will do, what to do if not
        ("Python", platform.python_version(), sys.version_info >= (3, 11), "take 3.11 or newer"),
        _packages(),
        ("torch", threads, True, ""),
        (
            "memory",
            f"{memory_GB:.1f} GB free",
            memory_GB >= MEMORY_GB,
            "close other programs, or take PROFILE=smoke",
        ),
        ("disk", f"{disk_GB:.1f} GB free", disk_GB >= DISK_GB, room),
        _writing(folder),
    ]
    useful = [
        ("cores", str(cores), cores > 1, "times are stated for two cores"),
        (
            "bf16",
            "in hardware" if bf16 else "not in hardware",
            bf16,
            "training takes float32, which is slower",
        ),
        ("GPU", gpu or "none", gpu, "only PROFILE=paper needs one"),
        ("RELION", relion or "not found", relion, "06 can ask it, tests do: apt install relion"),
    ]
    report = [Item(name, value, ok, "" if ok else advice) for name, value, ok, advice in needed]
    return report + [
        Item(name, value, True, "" if there else advice) for name, value, there, advice in useful
    ]


def _packages() -> tuple[str, str, bool, str]:
    try:
        needed = [re.match(r"[\w.-]+", r)[0] for r in requires("cryonb") if "extra ==" not in r]
    except PackageNotFoundError:
        return "packages", "cryonb is not installed", False, "pip install -e . in its folder"
    missing = [name for name in needed if not _installed(name)]
    found = f"{len(needed) - len(missing)} of {len(needed)}, cryonb {version('cryonb')}"
    return "packages", found, not missing, f"pip install {' '.join(missing)}"


def _installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def _writing(folder: str | Path) -> tuple[str, str, bool, str]:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return "writing", "allowed", True, ""
    except OSError as error:
        advice = "go to a folder that is yours, or name one with --run-dir"
        return "writing", error.strerror or str(error), False, advice


def span(seconds: float) -> str:
    """A duration in words that fit its size."""
    return f"{seconds:.0f}\xa0s" if seconds < 90 else f"{seconds / 60:.0f}\xa0min"
