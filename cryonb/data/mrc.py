"""Opening MRC files of any writer: `open_mrc` is the one place that reads their headers.

mrcfile refuses what lacks the identifier MAP or has a machine stamp that it does not know, as
files of EMAN, older IMOD and SPIDER's converters do; RELION reads them. Here dimensions that fit
the file's length decide, and such a file is read with a note.
"""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from cryonb.base.files import existing

HEADER = 1024  # bytes
MODES = {0: "i1", 1: "i2", 2: "f4", 4: "c8", 6: "u2", 12: "f2"}
STAMPS = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}  # first two bytes of MACHST
IMOD_STAMP = 1146047817  # at byte 152; bit 0 of the flags behind it says that bytes are signed


@dataclass(frozen=True)
class Mrc:
    """An MRC file whose header is read and whose length fits it.

    Attributes
    ----------
    path : Path
    header : numpy.void
        Fields of `mrcfile.dtypes.HEADER_DTYPE`, in the file's byte order.
    shape : (int, int, int)
        Sections, rows and columns as they lie in the file, also of a single image or volume.
    dtype : numpy.dtype
    offset : int
        Bytes before the data.
    odd : str
        What is unusual in the header, or nothing.
    """

    path: Path
    header: np.void
    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    odd: str = ""

    @property
    def data(self) -> np.ndarray:
        """Data (sections, rows, columns): a read-only memory map, or an array if gzipped."""
        if _gzipped(self.path):
            raw = _read(self.path, self.offset + self.dtype.itemsize * int(np.prod(self.shape)))
            return np.frombuffer(raw, self.dtype, offset=self.offset).reshape(self.shape)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)

    @property
    def extended_header(self) -> bytes:
        """What lies between header and data."""
        return _read(self.path, self.offset)[HEADER:]

    @property
    def voxel_A(self) -> tuple[float, float, float]:
        """Edges (z, y, x) of a voxel in Å; 0 where the header does not say."""
        cell, header = self.header["cella"], self.header
        sizes = [(float(cell[axis]), int(header[f"m{axis}"])) for axis in "zyx"]
        known = [edge > 0 and np.isfinite(edge) and count > 0 for edge, count in sizes]
        return tuple(e / m if k else 0.0 for (e, m), k in zip(sizes, known, strict=True))

    @property
    def volumes(self) -> int:
        """Volumes in the file: more than one only in a stack of volumes (space group 401 on)."""
        sections = int(self.header["mz"])
        stacked = 401 <= self.header["ispg"] <= 630 and 0 < sections < self.shape[0]
        return self.shape[0] // sections if stacked else 1


def open_mrc(path: str | os.PathLike, quiet: bool = False) -> Mrc:
    """Read the header of an MRC file (gzipped or not) and check it against the file's length.

    `quiet` leaves the note on an unusual header in `Mrc.odd`. FileNotFoundError; ValueError for a
    kind of pixel that cannot be read, or a file that is damaged or cut short.
    """
    path = existing(path)
    try:
        raw = _read(path, HEADER)
        size = _unpacked_size(path)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): get it again") from error
    mrc = parse_header(path, raw, size)
    if mrc.odd and not quiet:
        say_odd(mrc)
    return mrc


def say_odd(mrc: Mrc, more: str = "") -> None:
    """Print what is unusual in a header."""
    print(f"note: {mrc.path}{more} has {mrc.odd}; its length fits, so it is read", file=sys.stderr)


def parse_header(path: str | os.PathLike, raw: bytes, size: int) -> Mrc:
    """Read the first 1024 bytes of a file of so many bytes, which may lie on a server."""
    if len(raw) < HEADER:
        raise ValueError(
            f"{path} is damaged or cut short ({size} bytes, an MRC header has {HEADER}): "
            "copy or make it again"
        )
    named, stamped = raw[208:212] in (b"MAP ", b"MAP\0"), STAMPS.get(raw[212:214])
    found = None
    for order in (stamped or "<", ">" if (stamped or "<") == "<" else "<"):
        header = np.frombuffer(raw, np.dtype(HEADER_DTYPE).newbyteorder(order))[0]
        offsets = [HEADER + int(header["nsymbt"])] + [HEADER] * (not named)
        found = found or _fitting(header, size, offsets)
    if found is None:
        raise ValueError(_why_not(path, raw, stamped or "<", size))
    header, shape, dtype, offset = found
    odd = [*(["no 'MAP ' identifier"] * (not named))]
    if stamped != ("<" if header.dtype["nx"] == np.dtype("<i4") else ">"):
        odd.append(f"the machine stamp {raw[212:216].hex(' ')}")
    return Mrc(path, header, shape, dtype, offset, " and ".join(odd))


def _fitting(header: np.void, size: int, offsets: list[int]):
    """Header, shape, dtype and offset if the dimensions fit so many bytes, or None."""
    shape = tuple(int(header[name]) for name in ("nz", "ny", "nx"))
    mode = int(header["mode"])
    if mode not in MODES or min(shape) < 1:
        return None
    dtype = np.dtype(MODES[mode]).newbyteorder("<" if header.dtype["nx"] == "<i4" else ">")
    if mode == 0 and _unsigned(header):
        dtype = np.dtype("u1")
    needed = shape[0] * shape[1] * shape[2] * dtype.itemsize
    fits = [offset for offset in offsets if HEADER <= offset and offset + needed <= size]
    return (header, shape, dtype, fits[0]) if fits else None


def _unsigned(header: np.void) -> bool:
    """Whether IMOD's stamp says that mode 0 holds unsigned bytes."""
    order = header.dtype["nx"]
    stamp, flags = np.frombuffer(header["extra2"].tobytes()[40:48], order)
    return stamp == IMOD_STAMP and not flags & 1


def _why_not(path: Path, raw: bytes, order: str, size: int) -> str:
    """Why nothing in a header fits the file's length."""
    header = np.frombuffer(raw, np.dtype(HEADER_DTYPE).newbyteorder(order))[0]
    nz, ny, nx, mode = (int(header[name]) for name in ("nz", "ny", "nx", "mode"))
    if min(nz, ny, nx) > 0 and mode in (3, 16, 101):
        return f"{path} has pixels of MRC mode {mode}, which is not read: convert it to float32"
    return (
        f"{path} is damaged or cut short ({size:,} bytes do not hold the {nx} × {ny} × {nz} values "
        f"of mode {mode} that its header says): copy or make it again"
    )


def _gzipped(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _read(path: Path, count: int) -> bytes:
    """First bytes of a file, unpacked."""
    with gzip.open(path) if _gzipped(path) else open(path, "rb") as file:
        return file.read(count)


def _unpacked_size(path: Path) -> int:
    """Length in bytes; a gzipped file is unpacked for it."""
    if not _gzipped(path):
        return path.stat().st_size
    with gzip.open(path) as file:
        return sum(len(part) for part in iter(lambda: file.read(1 << 22), b""))
