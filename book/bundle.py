"""Pack everything that a workshop without a network needs into one archive, for a USB stick.

``python bundle.py`` writes ``dist/cryonb-offline-SYSTEM-pyVERSION.tar``: this checkout, wheels of
all packages for this system and this version of Python, real micrographs, the book if it is built,
and, with ``--run runs/workshop``, a finished run, which notebooks opened alone read.
In the unpacked folder ``make tutorial OFFLINE=1`` works with the network off.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryonb.base.files import beside, check_room
from cryonb.data.fetch import MICROGRAPHS, fetch

ROOT = Path(__file__).parents[1]
FOLDER = "cryonb"  # what the archive unpacks to
BUILT = Path("book/_build/html")
LEFT_OUT = {".git", ".venv", "runs", "exercises", "build", "dist", "_build", "wheels", "cache"}
LEFT_OUT |= {"__pycache__", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}
NEEDED_BYTES = 2_000_000_000


def checkout(root: Path) -> Iterator[Path]:
    """Files of the project under `root`, relative to it, without what was made there."""
    for path in sorted(root.iterdir()):
        if path.name in LEFT_OUT or path.name.endswith(".egg-info") or path.is_symlink():
            continue
        if path.is_dir():
            yield from (path.name / inner for inner in checkout(path))
        else:
            yield Path(path.name)


def wheels(target: Path) -> list[Path]:
    """Get or build a wheel of each package that cryonb needs, and of what builds cryonb itself.

    Raises
    ------
    OSError
        When pip fails; its own words are on the terminal.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--quiet"]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--wheel-dir", str(target)]
    if subprocess.run([*command, f"{ROOT}[test]", "setuptools>=77"]).returncode:
        raise OSError("pip could not get all packages: go where there is network, and try again")
    for own in target.glob("cryonb-*.whl"):
        own.unlink()  # the checkout itself is installed
    return sorted(target.iterdir())


def micrographs() -> Iterator[Path]:
    """Real micrographs in the cache; one that cannot be had is named and left out."""
    for name in MICROGRAPHS:
        try:
            yield fetch(name)
        except (OSError, ValueError) as error:
            print(f"left out: {name}: {error}")


def bundle(target: Path, built: Path | None, run: Path | None = None) -> Path:
    """Write the archive beside its place, then rename it.

    Parameters
    ----------
    target : Path
        Folder of the archive, made if it is missing.
    built : Path or None
        The built book, to be packed as it is.
    run : Path, optional
        A run folder, to be packed as ``runs/NAME``.

    Returns
    -------
    Path

    Raises
    ------
    OSError
        When there is no room, or the packages cannot be had.
    """
    target.mkdir(parents=True, exist_ok=True)
    run_bytes = sum(path.stat().st_size for path in run.rglob("*")) if run else 0
    check_room(target, NEEDED_BYTES + run_bytes, "or bundle on another disk")
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    archive = target / f"cryonb-offline-{sysconfig.get_platform()}-{python}.tar"
    with tempfile.TemporaryDirectory(dir=target) as work, beside(archive) as part:
        with tarfile.open(part, "w") as tar:
            for path in checkout(ROOT):
                tar.add(ROOT / path, f"{FOLDER}/{path}")
            for path in wheels(Path(work)):
                tar.add(path, f"{FOLDER}/wheels/{path.name}")
            for path in micrographs():
                tar.add(path, f"{FOLDER}/cache/{path.name}")
            if built:
                tar.add(built, f"{FOLDER}/{BUILT}")
            if run:
                tar.add(run, f"{FOLDER}/runs/{run.resolve().name}")
    return archive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the archive")
    parser.add_argument("--run", type=Path, help="a finished run to take along: runs/workshop")
    args = parser.parse_args()
    if args.run and not (args.run / "run.json").is_file():
        sys.exit(f"bundle: {args.run} holds no run: make tutorial PROFILE=workshop first")
    built = ROOT / BUILT
    if not built.is_dir():
        print("left out: the book, which is not built: make book, then bundle again")
        built = None
    try:
        archive = bundle(args.out, built, args.run)
    except OSError as error:
        sys.exit(f"bundle: {error}")
    print(f"{archive} ({archive.stat().st_size / 1e6:,.0f} MB)")
    print(f"on the other machine:  tar xf {archive.name} && cd {FOLDER}, make tutorial OFFLINE=1")


if __name__ == "__main__":
    main()
