"""``cryonb fetch``: real data by name, kept in a cache and checked each time against a sha256."""

from __future__ import annotations

import gzip
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pooch

from cryonb.base.download import (
    OFFLINE,
    RETRY,
    Client,
    check_sha256,
    discard,
    download,
    keep,
    shown,
)
from cryonb.base.files import below, check_room
from cryonb.base.options import TIMEOUT_S
from cryonb.data.empiar import fetch_images, list_images
from cryonb.data.mrc import HEADER, parse_header
from cryonb.data.star import StarFile, image_names

# A source distribution with two micrographs in its test data. pip checks its sha256 before it runs
# anything of it.
SDIST = "mrcfile", "1.5.4", "8fa9eb2e237d87d99b301c61bf02854dd85a451db25eefcbe142c09b36d8d601"
MIRROR = "https://ftp.ebi.ac.uk"  # EMDB, the PDB and EMPIAR, below these folders:
EMDB, PDB, EMPIAR = (
    "pub/databases/emdb/structures/EMD-{0}/map/emd_{0}.map.gz",
    "pub/databases/pdb/data/structures/divided/mmCIF/{1}/{0}.cif.gz",
    "empiar/world_availability",
)
SHA256 = {  # of files as their archive sends them, where known
    "emd_8511.map.gz": "1f03ec4a0cadb407b6b972c803ffe1e97ff5087d4c2ce9fec2c404747a7fb3fe",
}
ANY_CASE = re.IGNORECASE | re.ASCII
STARS = {"10081": "data/particle_stacks/data.star"}
NAMES = (
    "EMD-8511 (or any map of EMDB), 5U6O (or any model of the PDB), EMPIAR-10081 (or "
    "EMPIAR-NUMBER/path/of/a.star), micrograph-epu, micrograph-fei"
)


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


def fetch(
    name: str,
    *,
    max_images: int | None = None,
    cache: str | os.PathLike | None = None,
    mirror: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Path:
    """Get real data by name: from the cache, or else from where it is published.

    Parameters
    ----------
    name : str
        "EMD-8511", or the number of any other entry of EMDB: its map, header and all.
        "5U6O", or any other entry of the PDB: its mmCIF file.
        "EMPIAR-10081", or another entry with the path of its particle file below the entry's
        folder, "EMPIAR-10028/data/particles.star": the particles.
        "micrograph-epu" or "micrograph-fei": 300 kV micrographs that were contributed to the test
        data of the package mrcfile, with permission to distribute them. What the samples are is
        not stated. They come through pip.
    max_images : int, optional
        Of an EMPIAR entry, only the first so many particles: they become one stack, and no other
        images are downloaded. By default all.
    cache : path, optional
        Folder for the files; by default that of the environment variable CRYONB_CACHE, or else
        the system's folder for caches.
    mirror : str, optional
        Address to put before the paths of archives; by default that of the environment variable
        CRYONB_MIRROR, or else EMBL-EBI's, which holds all three.
    timeout_s : float
        How long a server may be silent, in seconds.

    Returns
    -------
    Path
        The file in the cache; of an EMPIAR entry the STAR file, with its stack beside it.

    Raises
    ------
    ValueError
        A malformed name; a file that is damaged, another than its name says, or has another sha256
        than the known or recorded one. It is not kept.
    FileNotFoundError
        The archive has no such entry.
    OSError
        No network, or one that fails again and again (what has come is kept for the next call);
        a full disk, or a cache that cannot be written to.
    """
    folder = Path(cache or os.environ.get("CRYONB_CACHE") or pooch.os_cache("cryonb"))
    base = _address(mirror or os.environ.get("CRYONB_MIRROR") or MIRROR)
    client = Client(timeout_s)
    particles = re.fullmatch(r"(EMPIAR-(\d{5,6}))(?:/([\w./-]+\.star))?", name, ANY_CASE)
    if max_images is not None and (max_images < 1 or not particles):
        raise ValueError("max_images is a number above 0, and only for an entry of EMPIAR")
    if name in MICROGRAPHS:
        return _fetch_micrograph(name, folder)
    if is_volume(name):
        return _fetch_volume(client, base, name, folder)
    if particles:
        entry, number, star = particles.groups()
        star = star or STARS.get(number)
        if not star:
            raise ValueError(f"name the particle file of {entry}, as {entry}/data/particles.star")
        path = below(folder / entry.upper(), star)
        return _fetch_particles(client, f"{base}/{EMPIAR}/{number}/{star}", path, max_images)
    raise ValueError(f"unknown name {name!r}: give {NAMES}")


def _address(mirror: str) -> str:
    """Check the address of a mirror; it may hold a password, and no message repeats it."""
    try:
        parts = urlsplit(mirror)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.query
    except ValueError:
        good = False
    if not good:
        raise ValueError("the mirror is no address, such as https://ftp.ebi.ac.uk")
    return mirror.rstrip("/")


def is_volume(name: str) -> bool:
    """Whether a name is that of an entry of EMDB or the PDB: a map, or a model to make one of."""
    return bool(re.fullmatch(r"EMD-\d{4,6}|(?!\d{4})\d[A-Z0-9]{3}", name, ANY_CASE))


def _fetch_micrograph(name: str, folder: Path) -> Path:
    member, sha256, _ = MICROGRAPHS[name]
    return keep(folder / f"{name}.mrc", partial(_unpack_micrograph, member), sha256)


def _unpack_micrograph(member: str, path: Path) -> None:
    """Write one file of the source distribution, which pip downloads into a passing folder."""
    package, version, sha256 = SDIST
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wish = Path(folder, "requirement.txt")
        wish.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", package, "--retries", "2"]
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


def _fetch_volume(client: Client, base: str, name: str, folder: Path) -> Path:
    key = name.lower().removeprefix("emd-")
    path = (PDB if len(key) == len(name) else EMDB).format(key, key[1:3])
    return keep(folder / Path(path).stem, partial(_unzip, client, f"{base}/{path}"))


def _unzip(client: Client, url: str, path: Path) -> None:
    """Download a gzip file and write the map or model in it, at most as long as that says it is."""
    name = Path(url).name
    packed = path.with_name(f".{name}.part")
    download(client, url, packed)
    try:
        check_sha256(packed, SHA256.get(name))
        with gzip.open(packed) as source, open(path, "wb") as file:
            chunk = source.read(HEADER)
            most = _most_bytes(shown(url), chunk, packed)
            while chunk and file.tell() <= most:
                file.write(chunk)
                chunk = source.read(1 << 20)
        if chunk:
            raise ValueError(f"{shown(url)} unpacks to more than {most:,} bytes, and is not kept")
    except ValueError:
        discard(packed)
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        discard(packed)
        raise ValueError(
            f"{shown(url)} came as something else than a whole gzip file ({error}), perhaps as an "
            f"error page: {RETRY}"
        ) from error
    discard(packed)


def _most_bytes(url: str, head: bytes, packed: Path) -> int:
    """How long a file may be that begins like this; ValueError if it is no map or model."""
    if url.endswith(".cif.gz") and head.startswith(b"data_"):
        return 100 * packed.stat().st_size + HEADER  # text is packed to a fifth or so
    try:
        mrc = parse_header(url, head, sys.maxsize)
    except ValueError:
        raise ValueError(f"{url} holds something else than it is named for") from None
    size = mrc.offset + math.prod(mrc.shape) * mrc.dtype.itemsize
    check_room(packed.parent, size, "or name another --cache")
    return size + (1 << 20)


def _fetch_particles(client: Client, url: str, star: Path, max_images: int | None) -> Path:
    """Get the STAR file at `url`, then its first images as one stack and a STAR that names them."""
    keep(star, partial(_get_star, client, url))
    file = StarFile(star)
    images = list_images(file)[:max_images]
    first = star.with_name(f"{star.stem}_first_{len(images)}.star")
    stack = first.with_suffix(".mrcs")
    folders = [url.rpartition("/")[0]]
    while not folders[-1].endswith(EMPIAR):
        folders.append(folders[-1].rpartition("/")[0])
    keep(stack, partial(fetch_images, client, images, folders))
    names = image_names(len(images), stack.name)
    return keep(first, lambda part: file.write(part, file.particles(), {"rlnImageName": names}))


def _get_star(client: Client, url: str, part: Path) -> None:
    download(client, url, part)
    list_images(StarFile(part))  # or ValueError
