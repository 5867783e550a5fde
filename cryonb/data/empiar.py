"""The first particles of an EMPIAR entry: byte ranges of its stacks, put together as one stack."""

from __future__ import annotations

import hashlib
import math
import re
from itertools import product
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from cryonb.base.download import Client, Remote, Span, assemble, shown
from cryonb.base.files import NOT_DETERMINED
from cryonb.data.mrc import HEADER, Mrc, parse_header
from cryonb.data.star import StarFile

IMAGE = re.compile(r"(\d+)@(.+)")


def list_images(star: StarFile) -> list[tuple[int, str]]:
    """Number in its stack, from 1, and stack of each particle; ValueError if a row names none."""
    names = star.frame(star.particles())["rlnImageName"]
    found = [IMAGE.fullmatch(name) for name in names]
    if not found or None in found:
        wrong = names[found.index(None)] if found else "nothing"
        raise ValueError(f"{star.path} names {wrong!r}, no image 000001@stack.mrcs: fetch another")
    return [(int(image[1]), image[2]) for image in found]


def fetch_images(
    client: Client, images: list[tuple[int, str]], folders: list[str], part: Path
) -> None:
    """Write images of an entry, in their order, to `part` as one stack.

    Only their bytes are asked for, and a 1024-byte header of each stack. Pixels stay as they are;
    the header is the first stack's, corrected for the number of images.

    Parameters
    ----------
    client : Client
    images : list of (int, str)
        Number in its stack, from 1, and stack.
    folders : list of str
        Addresses that the names of stacks may be relative to; sorted by which one it turns out.
    part : Path
        See `cryonb.base.download.assemble`, also for errors.

    Raises
    ------
    FileNotFoundError, ValueError
        A stack is in none of the folders; it is not whole, of another kind, or has no such image.
    """
    names = dict.fromkeys(stack for _, stack in images)
    stacks = {}
    for name in tqdm(names, desc="headers of stacks", disable=len(names) < 10):
        remote = _find(client, folders, name)
        raw = b"".join(client.read(Span(remote, 0, min(HEADER, remote.size))))
        stacks[name] = remote, parse_header(shown(remote.url), raw, remote.size)
    kinds = {(mrc.shape[1:], mrc.dtype.str): name for name, (_, mrc) in stacks.items()}
    if len(kinds) > 1:
        listed = ", ".join(f"{name}: {x} × {y} px, {t}" for ((y, x), t), name in kinds.items())
        raise ValueError(f"stacks of several kinds cannot be one ({listed}): fewer --max-images")
    spans = []
    for number, name in images:
        span = _span(*stacks[name], number)
        if spans and (span.remote, span.start) == (spans[-1].remote, spans[-1].stop):
            span = spans.pop()._replace(stop=span.stop)  # asked for at once
        spans.append(span)
    version = hashlib.sha256(repr(spans).encode()).hexdigest()
    header = _header_like(stacks[images[0][1]][1], len(images))
    assemble(client, spans, part, version, header)


def _find(client: Client, folders: list[str], name: str) -> Remote:
    """Look for a stack in each folder, under its own name or the last part of it.

    Names in a STAR file are relative to the folder where RELION ran, which is not recorded. The
    folder that proves right moves to the front.
    """
    for path, folder in product((name, Path(name).name), list(folders)):
        try:
            remote = client.look(f"{folder}/{quote(path)}")
        except FileNotFoundError:
            continue
        folders.remove(folder)
        folders.insert(0, folder)
        return remote
    raise FileNotFoundError(
        f"the stack {name}, named in the STAR file, is not in {shown(folders[0])}"
    )


def _span(remote: Remote, mrc: Mrc, number: int) -> Span:
    """The bytes of image `number`, from 1."""
    count, *sides = mrc.shape
    if not 1 <= number <= count:
        raise ValueError(f"the STAR file asks for image {number} of {count}: {shown(remote.url)}")
    image_bytes = math.prod(sides) * mrc.dtype.itemsize
    start = mrc.offset + (number - 1) * image_bytes
    return Span(remote, start, start + image_bytes)


def _header_like(mrc: Mrc, count: int) -> bytes:
    """Return the header of a stack of `count` images like those of another stack.

    Extended header and statistics belong to that other stack and are dropped.
    """
    header = mrc.header.copy()
    if header["mz"] > 0:
        header["cella"]["z"] /= header["mz"]  # one section: as thick as a voxel
    stamp = (0x11, 0x11, 0, 0) if mrc.dtype.str[0] == ">" else (0x44, 0x44, 0, 0)
    values = {"nz": count, "mz": 1, "ispg": 0, "nsymbt": 0, "exttyp": b"", "map": b"MAP "}
    values |= NOT_DETERMINED | {"nversion": 20140, "machst": stamp}
    for name, value in values.items():
        header[name] = value
    return header.tobytes()
