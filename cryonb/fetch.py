"""``cryonb fetch``: real data by name, kept in a cache and checked each time against a sha256."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pooch

# A source distribution with two micrographs in its test data. pip checks its sha256 before it runs
# anything of it.
SDIST = "mrcfile", "1.5.4", "8fa9eb2e237d87d99b301c61bf02854dd85a451db25eefcbe142c09b36d8d601"
OFFLINE = "without a network, use channel, prestin or a file of your own"


class Micrograph(NamedTuple):
    """A file of the source distribution, its sha256, and what its header says."""

    member: str
    sha256: str
    header: str


MICROGRAPHS = {
    "micrograph-epu": Micrograph(
        "tests/test_data/epu2.9_example.mrc",
        "c52b35f70216ba6ffed7523c70810806117676f463ee4f15c1da18697caf8653",
        "4096 × 4096 px of 0.66655 Å, 300 kV",
    ),
    "micrograph-fei": Micrograph(
        "tests/test_data/fei-extended.mrc",
        "e9f168012031b3a6ea47fbed8eca8b9c8a040b4d1f4fbb2e3326bdb6d9307efe",
        "3710 × 3838 px of 0.85378 Å, 300 kV",
    ),
}


def fetch(name: str, *, cache: str | os.PathLike | None = None) -> Path:
    """Get real data by name: from the cache, or else from where it is published.

    Parameters
    ----------
    name : str
        "micrograph-epu" or "micrograph-fei": 300 kV micrographs that were contributed to the test
        data of the package mrcfile, with permission to distribute them. What the samples are is
        not stated. They come through pip.
    cache : path, optional
        Folder for the files; by default that of the environment variable CRYONB_CACHE, or else
        the system's folder for caches.

    Returns
    -------
    Path
        The file in the cache.

    Raises
    ------
    ValueError
        An unknown name, or a file with another sha256 than the known one; it is not kept.
    OSError
        No network, no such file, a full disk or a cache that cannot be written to.
    """
    folder = Path(cache or os.environ.get("CRYONB_CACHE") or pooch.os_cache("cryonb"))
    if name in MICROGRAPHS:
        wanted = MICROGRAPHS[name]
        source = f"{wanted.member} of {SDIST[0]} {SDIST[1]}"
        make = partial(_unpack_micrograph, wanted.member)
        return _keep(folder / f"{name}.mrc", make, source, wanted.sha256)
    raise ValueError(f"unknown name {name!r}: give one of {', '.join(MICROGRAPHS)}")


def fetch_parser() -> argparse.ArgumentParser:
    """Options of `cryonb fetch`."""
    parser = argparse.ArgumentParser(
        prog="cryonb fetch", description="Get real data by name and print where the file lies."
    )
    add = parser.add_argument
    add("name", help=", ".join(MICROGRAPHS))
    add("--cache", help="folder to keep files in (default $CRYONB_CACHE, or the system's cache)")
    return parser


def fetch_main(arguments: list[str]) -> int:
    """Get data by name, with these command-line arguments; standard output is the path alone."""
    args = fetch_parser().parse_args(arguments)
    path = fetch(args.name, cache=args.cache)
    if args.name in MICROGRAPHS:
        note = f"{MICROGRAPHS[args.name].header}; what the sample is, is not stated"
        print(f"{args.name}: {note}", file=sys.stderr)
    print(path)
    return 0


def _keep(path: Path, make: Callable[[Path], None], source: str, sha256: str | None = None) -> Path:
    """Return `path`; unless it is there and whole, `make` it beside, check it and rename it.

    It is whole if it has the known sha256, or else the one that was recorded in a JSON file beside
    it when it was first got.
    """
    record = path.with_name(f"{path.name}.json")
    known = sha256 or (json.loads(record.read_text())["sha256"] if record.is_file() else None)
    if path.is_file():
        found = pooch.file_hash(path)
        if found == known:
            return path
        if known is None:  # put there by hand
            with contextlib.suppress(OSError):  # a cache for all may be read-only
                _write_record(record, path, found, source)
            return path
        print(f"{path} is damaged (sha256 {found[:12]}…): fetching it again", file=sys.stderr)
    _check_writable(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        make(beside)
        found = pooch.file_hash(beside)
        _check_sha256(found, known, path.name, None if sha256 else record)
        _write_record(record, beside, found, source)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _check_sha256(found: str, known: str | None, what: str, record: Path | None = None) -> None:
    if known in (None, found):
        return
    advice = "fetch it again, or from elsewhere"
    if record:
        advice = f"if its archive has revised it, delete {record} and fetch again"
    raise ValueError(
        f"{what} came with sha256 {found[:12]}… and not the known {known[:12]}…, and is not kept: "
        f"{advice}"
    )


def _write_record(record: Path, file: Path, sha256: str, source: str) -> None:
    fetched = datetime.now(UTC).isoformat(timespec="seconds")
    size = file.stat().st_size
    content = {"source": source, "sha256": sha256, "bytes": size, "fetched": fetched}
    record.write_text(json.dumps(content, indent=1) + "\n")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"the cache {folder} cannot be written to ({error.strerror}): "
            "name another one, --cache or CRYONB_CACHE"
        ) from error


def _unpack_micrograph(member: str, path: Path) -> None:
    """Write one file of the source distribution, which pip downloads into a passing folder."""
    package, version, sha256 = SDIST
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wish = Path(folder, "requirement.txt")
        wish.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", package, "--require-hashes", "--retries", "2"]
        print(f"getting {package} {version} through pip, 52 MB", file=sys.stderr)
        done = subprocess.run(
            [*command, "--requirement", wish, "--dest", folder], capture_output=True, text=True
        )
        if done.returncode:
            said = [s for s in done.stderr.splitlines() if "ERROR" in s or "No module" in s]
            reason = said[0] if said else "no reason given"
            raise OSError(
                f"pip could not get {package} {version} ({reason}): "
                f"check the network and pip's settings; {OFFLINE}"
            )
        with tarfile.open(Path(folder, f"{package}-{version}.tar.gz")) as archive:
            inside = archive.extractfile(f"{package}-{version}/{member}")
            with open(path, "wb") as file:
                shutil.copyfileobj(inside, file)
