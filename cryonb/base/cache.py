"""A cache of files: each made once, checked against a sha256 every time, and never half there."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pooch import file_hash

from cryonb.base.files import beside

RETRY = "run the same command again, or try another --mirror"


def keep(path: Path, make: Callable[[Path], None], source: str, sha256: str | None = None) -> Path:
    """Return `path`; unless it is there and whole, make it beside, check it and rename it.

    It is whole if it has the known sha256, or else the one that was recorded in a JSON file beside
    it when it was first made.

    Parameters
    ----------
    path : Path
        Its folder is made if needed.
    make : callable
        Writes the file at the path that it is given.
    source : str
        Where it comes from, for the record.
    sha256 : str, optional
        If it is known.

    Raises
    ------
    ValueError
        What was made has another sha256; it is not kept.
    OSError
        The folder cannot be written to, or what `make` raises.
    """
    record = path.with_name(f"{path.name}.json")
    known = sha256 or _recorded(record)
    if path.is_file():
        found = file_hash(path)
        if found == known:
            return path
        if known is None:  # put there by hand
            with contextlib.suppress(OSError):  # perhaps by a teacher, in a folder to read only
                _write_record(record, path, found, source)
            return path
        print(f"{path} is damaged (sha256 {found[:12]}…): getting it again", file=sys.stderr)
    _check_writable(path.parent)
    with beside(path) as part:
        make(part)
        found = file_hash(part)
        advice = (
            f"if its archive has revised it, delete {record} and what you made of the old one, and "
            "run the same command again"
        )
        check_sha256(path.name, found, known, RETRY if sha256 else advice)
        if not record.is_file():
            _write_record(record, part, found, source)
    return path


def check_sha256(name: str, found: str, known: str | None, advice: str = RETRY) -> None:
    """Raise ValueError if a sha256 is not the known one, where one is known."""
    if known not in (None, found):
        raise ValueError(
            f"{name} came with sha256 {found[:12]}… and not the known {known[:12]}…, and is not "
            f"kept: {advice}"
        )


def _recorded(record: Path) -> str | None:
    if not record.is_file():
        return None
    try:
        return json.loads(record.read_text())["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{record} is damaged: delete it and run the same command again") from None


def _write_record(record: Path, file: Path, sha256: str, source: str) -> None:
    fetched = datetime.now(UTC).isoformat(timespec="seconds")
    size = file.stat().st_size
    content = {"source": source, "sha256": sha256, "bytes": size, "fetched": fetched}
    try:
        record.write_text(json.dumps(content, indent=1) + "\n")
    except OSError:
        record.unlink(missing_ok=True)  # no half record
        raise


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"the cache {folder} cannot be written to ({error.strerror}): "
            "name another folder, --cache or CRYONB_CACHE"
        ) from error
