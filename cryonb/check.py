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
    advice: str = ""


def environment_report(folder: str | Path = ".") -> list[Item]:
    """Check Python, packages, processor, memory, GPU, disk, write permission and RELION.

    Parameters
    ----------
    folder : path
        Where the runs are going to be written.

    Returns
    -------
    list of Item
        ``(name, value, ok, advice)``; what is only useful, not needed, is ok when it is missing.
    """
    import torch

    available = psutil.virtual_memory().available / 1e9
    free = shutil.disk_usage(folder).free / 1e9
    cores, gpu = os.cpu_count() or 1, torch.cuda.is_available()
    relion = shutil.which("relion_reconstruct")
    return [
        Item(
            "Python",
            platform.python_version(),
            sys.version_info >= (3, 11),
            "" if sys.version_info >= (3, 11) else "3.11 or newer is needed",
        ),
        _packages(),
        Item("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", True),
        Item("cores", str(cores), True, "" if cores > 1 else "times are stated for two cores"),
        _at_least("memory", available, MEMORY_GB, "close other programs, or take PROFILE=smoke"),
        Item("bf16", *_bf16()),
        Item(
            "GPU",
            torch.cuda.get_device_name() if gpu else "none",
            True,
            "" if gpu else "only PROFILE=paper needs one",
        ),
        _at_least("disk", free, DISK_GB, "free some space here, or work in another folder"),
        _writable(Path(folder)),
        Item(
            "RELION",
            relion or "not found",
            True,
            "" if relion else "only some tests compare with it: sudo apt install relion",
        ),
    ]


def _at_least(name: str, have: float, need: float, advice: str) -> Item:
    return Item(name, f"{have:.1f} GB free", have >= need, "" if have >= need else advice)


def _packages() -> Item:
    try:
        needed = [re.match(r"[\w.-]+", r)[0] for r in requires("cryonb") if "extra ==" not in r]
    except PackageNotFoundError:
        return Item("packages", "cryonb is not installed", False, "pip install -e . in its folder")
    missing = []
    for name in needed:
        try:
            distribution(name)
        except PackageNotFoundError:
            missing.append(name)
    advice = f"pip install {' '.join(missing)}" if missing else ""
    found = f"{len(needed) - len(missing)} of {len(needed)}, cryonb {version('cryonb')}"
    return Item("packages", found, not missing, advice)


def _bf16() -> tuple[str, bool, str]:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "not known here", True, ""
    fast = [
        flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if re.search(rf"\b{flag}\b", flags)
    ]
    if fast:
        return f"in hardware ({fast[0]})", True, ""
    return "not in hardware", True, "training takes float32, which is slower"


def _writable(folder: Path) -> Item:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Item("writing", f"allowed in {folder.resolve().name or folder}", True)
    except OSError as error:
        advice = "go to a folder that is yours, or name one with --run-dir"
        return Item("writing", error.strerror or str(error), False, advice)
