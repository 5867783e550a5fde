"""The first particles of an EMPIAR entry: byte ranges of its stacks, put together as one stack."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from tqdm import tqdm

from cryonb.base.download import Remote, Span, assemble, copy, look
from cryonb.base.files import NOT_DETERMINED

HEADER_BYTES = HEADER_DTYPE.itemsize
PIXEL_BYTES = {0: 1, 1: 2, 2: 4, 6: 2, 12: 2}  # by MRC mode: int8, int16, float32, uint16, float16
MACHINE_STAMP = {"<": (0x44, 0x44, 0, 0), ">": (0x11, 0x11, 0, 0)}
CODEC = "utf-8", "surrogateescape"  # other bytes pass unchanged
LABEL = "_rlnImageName"
IMAGE = re.compile(r"(\d+)@(.+)")
WORD = re.compile(r""""[^"]*"|'[^']*'|\S+""")


class Rows(NamedTuple):
    """A STAR file as text: the lines before, of and after the rows that name images."""

    before: list[str]
    rows: list[str]
    after: list[str]
    names: list[re.Match]  # where each row names its image: (number) @ (stack)

    @property
    def images(self) -> list[tuple[int, str]]:
        """The number in its stack, from 1, and the stack of each row."""
        return [(int(name[1]), name[2]) for name in self.names]

    def first(self, count: int | None) -> Rows:
        """Return the same with the first `count` rows only."""
        return self._replace(rows=self.rows[:count], names=self.names[:count])

    def write(self, stack: str, path: Path) -> None:
        """Write the file with images 1, 2, ... of `stack` in its rows, and all else as it was."""
        rows = (
            f"{row[: name.start()]}{i:06d}@{stack}{row[name.end() :]}"
            for i, (row, name) in enumerate(zip(self.rows, self.names, strict=True), start=1)
        )
        text = "".join([*self.before, *rows, *self.after])
        path.write_bytes(text.encode(*CODEC))


class Stack(NamedTuple):
    """A stack on a server: its header (an array of shape ()), and the place of its first image."""

    remote: Remote
    header: np.ndarray
    first: int
    image_bytes: int

    @property
    def kind(self) -> tuple:
        """What all images of one file have in common: sides in pixels, MRC mode and byte order."""
        sides_and_mode = (int(self.header[name]) for name in ("nx", "ny", "mode"))
        return *sides_and_mode, _byte_order(self.header)

    def span(self, number: int) -> Span:
        """Return the bytes of image `number`, from 1."""
        count = int(self.header["nz"])
        if not 1 <= number <= count:
            raise ValueError(f"the STAR file asks for image {number} of {count}: {self.remote.url}")
        start = self.first + (number - 1) * self.image_bytes
        return Span(self.remote, start, start + self.image_bytes)


def read_rows(star: Path) -> Rows:
    """Read where a STAR file names images, in the first table that does.

    The text is kept as it is, so that no number loses a digit. ValueError if there is no such
    table, or a row names no image.
    """
    lines = star.read_bytes().decode(*CODEC).splitlines(keepends=True)
    label = next((i for i, line in enumerate(lines) if line.split()[:1] == [LABEL]), None)
    if label is None:
        raise ValueError(f"{star} has no column {LABEL}: choose a file that lists particles")
    top = first = label
    while top and lines[top - 1].startswith("_"):
        top -= 1
    while first < len(lines) and lines[first].startswith("_"):
        first += 1
    last = first
    while last < len(lines) and lines[last].strip() and not lines[last].startswith("data_"):
        last += 1
    if first == last:
        raise ValueError(f"{star} has no rows below {LABEL}: choose a file that lists particles")
    names = [_image_name(line, label - top, star) for line in lines[first:last]]
    return Rows(lines[:first], lines[first:last], lines[last:], names)


def _image_name(line: str, column: int, star: Path) -> re.Match:
    words = list(WORD.finditer(line))
    name = IMAGE.fullmatch(line, *words[column].span()) if column < len(words) else None
    if name is None:
        raise ValueError(f"{star} has a row that names no image 000001@stack.mrcs: {line.strip()}")
    return name


def fetch_images(get: Callable, rows: Rows, folders: list[str], part: Path) -> None:
    """Write the images of rows, in their order, to `part` as one stack.

    Only their bytes are asked for, and a 1024-byte header of each stack. Pixels stay as they are;
    the header is the first stack's, corrected for the number of images.

    Parameters
    ----------
    get : callable
        From `cryonb.base.download.connect`.
    rows : Rows
    folders : list of str
        Addresses that the names of stacks may be relative to; sorted by which one it turns out.
    part : Path
        See `cryonb.base.download.assemble`.

    Raises
    ------
    FileNotFoundError
        A stack is in none of the folders.
    ValueError
        A file is no whole stack, stacks differ in kind, or a row asks for an image past the end.
    OSError
        As `cryonb.base.download.copy`.
    """
    names = dict.fromkeys(stack for _, stack in rows.images)
    stacks = {
        name: _open_stack(get, _find(get, folders, name))
        for name in tqdm(names, desc="headers of stacks", disable=len(names) < 10)
    }
    kinds = {stack.kind: name for name, stack in stacks.items()}
    if len(kinds) > 1:
        listed = ", ".join(
            f"{name}: {x} × {y} px, mode {m}" for (x, y, m, _), name in kinds.items()
        )
        raise ValueError(f"stacks of several kinds cannot be one ({listed}): fewer --max-images")
    header = next(iter(stacks.values())).header
    spans = _join([stacks[stack].span(number) for number, stack in rows.images])
    version = hashlib.sha256(repr(spans).encode()).hexdigest()
    assemble(get, spans, part, version, _header_for(header, len(rows.names)))


def _find(get: Callable, folders: list[str], name: str) -> Remote:
    """Look for a stack in each folder, under its own name or the last part of it.

    Names in a STAR file are relative to the folder where RELION ran, which is not recorded. The
    folder that proves right moves to the front.
    """
    for path, folder in product((name, Path(name).name), list(folders)):
        try:
            remote = look(get, f"{folder}/{quote(path)}")
        except FileNotFoundError:
            continue
        folders.remove(folder)
        folders.insert(0, folder)
        return remote
    raise FileNotFoundError(f"the stack {name}, named in the STAR file, is not in {folders[0]}")


def _open_stack(get: Callable, remote: Remote) -> Stack:
    raw = bytearray()
    copy(get, Span(remote, 0, min(HEADER_BYTES, remote.size)), raw.extend)
    if len(raw) == HEADER_BYTES:
        for order in MACHINE_STAMP:
            header = np.frombuffer(bytes(raw), HEADER_DTYPE.newbyteorder(order))[0:1].reshape(())
            nx, ny, nz, skip = (int(header[name]) for name in ("nx", "ny", "nz", "nsymbt"))
            image_bytes = nx * ny * PIXEL_BYTES.get(int(header["mode"]), 0)
            first = HEADER_BYTES + skip
            if min(image_bytes, nx, nz, skip + 1) > 0 and first + nz * image_bytes <= remote.size:
                return Stack(remote, header, first, image_bytes)
    raise ValueError(f"{remote.url} is not a whole stack of real MRC images: fetch another entry")


def _byte_order(header: np.ndarray) -> str:
    return header.dtype["mode"].str[0]


def _join(spans: list[Span]) -> list[Span]:
    """Make one span of those that follow each other in one file, so that it is asked for once."""
    joined = spans[:1]
    for span in spans[1:]:
        if span.remote == joined[-1].remote and span.start == joined[-1].stop:
            joined[-1] = joined[-1]._replace(stop=span.stop)
        else:
            joined.append(span)
    return joined


def _header_for(header: np.ndarray, count: int) -> bytes:
    """Return the header of a stack of `count` images like those of another stack.

    Extended header and statistics belong to that other stack and are dropped.
    """
    new = header.copy()
    if new["mz"] > 0:
        new["cella"]["z"] /= new["mz"]  # one section: as thick as a voxel
    values = {"nz": count, "mz": 1, "ispg": 0, "nsymbt": 0, "exttyp": b"", "map": b"MAP "}
    values |= NOT_DETERMINED | {"nversion": 20140}
    values["machst"] = MACHINE_STAMP[_byte_order(header)]
    for name, value in values.items():
        new[name] = value
    return new.tobytes()
