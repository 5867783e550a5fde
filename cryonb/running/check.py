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

    memory = psutil.virtual_memory().available / 1e9
    disk = shutil.disk_usage(folder).free / 1e9
    cores, gpu = os.cpu_count() or 1, torch.cuda.is_available()
    gpu_name = torch.cuda.get_device_name() if gpu else "none"
    relion = shutil.which("relion_reconstruct")
    python, new = platform.python_version(), sys.version_info >= (3, 11)
    threads = f"{torch.__version__}, {torch.get_num_threads()} threads"
    free = "close other programs, or take PROFILE=smoke"
    space = "free some space here, or work in another folder"
    return [
        _needed("Python", python, new, "3.11 or newer is needed"),
        _packages(),
        Item("torch", threads, True),
        _useful("cores", str(cores), cores > 1, "times are stated for two cores"),
        _needed("memory", f"{memory:.1f} GB free", memory >= MEMORY_GB, free),
        _bf16(),
        _useful("GPU", gpu_name, gpu, "only PROFILE=paper needs one"),
        _needed("disk", f"{disk:.1f} GB free", disk >= DISK_GB, space),
        _writable(Path(folder)),
        _useful(
            "RELION", relion or "not found", relion, "06 can ask it, tests do: apt install relion"
        ),
    ]


def _needed(name: str, value: str, ok: bool, advice: str) -> Item:
    return Item(name, value, ok, "" if ok else advice)


def _useful(name: str, value: str, there, advice: str) -> Item:
    return Item(name, value, True, "" if there else advice)


def _packages() -> Item:
    try:
        needed = [re.match(r"[\w.-]+", r)[0] for r in requires("cryonb") if "extra ==" not in r]
    except PackageNotFoundError:
        return Item("packages", "cryonb is not installed", False, "pip install -e . in its folder")
    missing = [name for name in needed if not _installed(name)]
    found = f"{len(needed) - len(missing)} of {len(needed)}, cryonb {version('cryonb')}"
    return _needed("packages", found, not missing, f"pip install {' '.join(missing)}")


def _installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def _bf16() -> Item:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return Item("bf16", "not known here", True)
    names = ("amx_bf16", "avx512_bf16", "bf16")
    fast = [name for name in names if re.search(rf"\b{name}\b", flags)]
    value = f"in hardware ({fast[0]})" if fast else "not in hardware"
    return _useful("bf16", value, fast, "training takes float32, which is slower")


def _writable(folder: Path) -> Item:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Item("writing", f"allowed in {folder.resolve().name or folder}", True)
    except OSError as error:
        advice = "go to a folder that is yours, or name one with --run-dir"
        return Item("writing", error.strerror or str(error), False, advice)
