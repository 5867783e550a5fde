"""Files: whether they are there, whether there is room, and writing them whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PureWindowsPath

import yaml
from filelock import FileLock, Timeout

# Statistics of an MRC2014 header that say "not determined": max < min, mean < max, rms < 0.
NOT_DETERMINED = {"dmin": 0, "dmax": -1, "dmean": -2, "rms": -1}
MAPS = (".mrc", ".map", ".ccp4", ".mrc.gz", ".map.gz")  # how the names of maps end


@contextmanager
def beside(path: str | os.PathLike) -> Iterator[Path]:
    """Give a name to write to; it becomes `path` if the block ends well, and nothing if not."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def sole(path: str | os.PathLike) -> Iterator[None]:
    """Let no other process do the same to `path` at the same time; OSError where one does."""
    lock = Path(path).with_name(f".{Path(path).name}.lock")
    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout:
        raise OSError(f"{path} is being written by another process: wait for it") from None
    except (OSError, NotImplementedError):  # a disk without locks
        held = nullcontext()
    with held:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes it itself, once it is released
                lock.unlink()


def below(folder: str | os.PathLike, name: str) -> Path:
    """Path of a file named by somebody else; ValueError if it does not lie below the folder."""
    parts = PureWindowsPath(name)  # knows both kinds of slash, and drives
    if parts.anchor or not parts.parts or ".." in parts.parts:
        raise ValueError(f"{name!r} is no name of a file below {folder}: give one without .. or /")
    return Path(folder, name)


def existing(path: str | os.PathLike) -> Path:
    """Path of a file to read; FileNotFoundError if there is none."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: check the path")
    return path


def read_yaml(path: str | os.PathLike) -> dict:
    """Read a YAML file of names and values; FileNotFoundError or ValueError where it is none."""
    try:
        content = yaml.safe_load(existing(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no names with their values")
    return content


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file, whole or not at all."""
    with beside(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON file; an empty dict where it is missing or torn."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def check_writable(out: str | os.PathLike, endings: tuple[str, ...] = ("",)) -> None:
    """Refuse an output that could not be written, before the work and not after it."""
    folder = Path(out).resolve().parent
    if not Path(out).name:
        raise ValueError(f"{out} is a folder: name a file in it")
    if not Path(out).name.endswith(endings):
        raise ValueError(f"{out}: end the output's name in {' or '.join(endings)}")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FileNotFoundError(f"{folder} is no folder that can be written to: make it first")


def check_room(folder: Path, needed_bytes: int, advice: str) -> None:
    """Raise OSError with advice unless the disk of a folder has room for so many bytes more."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise OSError(
            f"{folder} has room for {free / 1e9:.1f} GB of the {needed_bytes / 1e9:.1f} GB that "
            f"are still to come: free some space, {advice}"
        )
