"""Particle files of any length: opened without reading their pixels, read row by row, streamed.

A STAR file of RELION (3.0 to 5), a .cs file of cryoSPARC or a bare stack: a `ParticleFile` has the
two tables of RELION 3.1 whatever the file is, and its `write_like` writes the like.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cryonb.base.files import existing
from cryonb.data.cryosparc import cs_table, read_cs, write_cs
from cryonb.data.maps import PIXEL_SIZES_A
from cryonb.data.mrc import open_mrc
from cryonb.data.optics import SAME_PIXEL, Columns
from cryonb.data.particles import Particles
from cryonb.data.stacks import Stacks
from cryonb.data.star import (
    CTF_APPLIED,
    MICROSCOPE,
    ORIGINS,
    StarFile,
    StarTable,
    image_names,
    write_star,
)

STACKS = (".mrcs", ".mrc", ".st")
PIXEL_SIZES = ["rlnImagePixelSize", "rlnPixelSize", "rlnDetectorPixelSize", "rlnMagnification"]


@dataclass(frozen=True)
class ParticleFile:
    """A particle file, opened by `open_particles`.

    Attributes
    ----------
    path : Path
    optics : pandas.DataFrame
        One row per optics group that is used; rlnImagePixelSize is 0 where nothing states it.
    table : pandas.DataFrame
        One row per image; columns that `cryonb.data.star.NUMBERS` does not list are text.
    stacks : Stacks
        The images.
    original : (StarFile, StarTable), numpy.ndarray or None
        What was read, to be written again.
    """

    path: Path
    optics: pd.DataFrame
    table: pd.DataFrame
    stacks: Stacks
    original: tuple[StarFile, StarTable] | np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def columns(self) -> Columns:
        """What the tables say, particle by particle."""
        return Columns(self.optics, self.table)

    @property
    def writes(self) -> tuple[str, ...]:
        """Endings of the files that `write_like` writes."""
        if isinstance(self.original, np.ndarray):
            return (".cs", ".star")
        return (".star",) if self.original else STACKS

    def check_apart(self, *outputs: str | os.PathLike) -> None:
        """ValueError if an output would replace the file or one of its stacks."""
        taken = {path.resolve() for path in (self.path, *self.stacks.paths)}
        for out in outputs:
            if Path(out).resolve() in taken:
                raise ValueError(
                    f"{out} would replace the input, which is never touched: choose another"
                )

    def read(self, rows=slice(None)) -> Particles:
        """Particles of some rows (a slice, numbers, or a mask); ValueError for NaN pixels."""
        rows = np.arange(len(self))[rows]
        return Particles(self.stacks.read(rows), self.optics, self.table.iloc[rows])

    def stream(self, batch_size: int = 256, half: int | None = None) -> Iterator[Particles]:
        """Particles in the order of the rows, some at a time, so that any number fits in memory.

        With `half`, those of half set 1 or 2 (rlnRandomSubset); ValueError if there is none.
        """
        rows = np.arange(len(self))
        if half is not None:
            if "rlnRandomSubset" not in self.table or half not in set(self.table.rlnRandomSubset):
                raise ValueError(f"{self.path} has no half set {half} (rlnRandomSubset)")
            rows = rows[self.table["rlnRandomSubset"] == half]
        for part in np.split(rows, range(batch_size, len(rows), batch_size)):
            yield self.read(part)

    def write_like(self, out: Path, stack: str, columns: dict | None = None) -> None:
        """Write the file with its images in a stack beside it; nothing for a bare stack.

        Columns of numbers, by name, take the place of the file's own or are added; a .cs file has
        no place for them, and a bare stack gets a STAR file beside it.
        """
        names, columns = image_names(len(self), stack), columns or {}
        if out.suffix == ".cs":
            write_cs(out, self.original, stack)
        elif isinstance(self.original, tuple):
            star, table = self.original
            texts = {name: [f"{x:.6f}" for x in values] for name, values in columns.items()}
            star.write(out, table, {"rlnImageName": names} | texts)
        elif self.original is not None or columns:
            particles = self.table.assign(rlnImageName=names, **columns)
            path = out.with_suffix(".star")
            write_star(path, {"optics": self.optics, "particles": particles})


def open_particles(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    pixel_size_A: float | None = None,
    passthrough: str | os.PathLike | None = None,
) -> ParticleFile:
    """Open a particle file, and look at the headers of all of its stacks.

    FileNotFoundError or ValueError is one line on what is missing, damaged or contradicts itself.

    Parameters
    ----------
    path : path
        Stacks are looked for in its folder, in those above it, and in the working directory.
    root : path, optional
        Folder in which stacks are looked for first, with or without the folders in their names.
    pixel_size_A : float, optional
        Å per pixel where the file does not state it, instead of what stacks' headers say.
    passthrough : path, optional
        With the fields that a .cs file lacks.
    """
    path = existing(path)
    if root is not None and not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is no folder: correct --root")
    if passthrough is not None and path.suffix != ".cs":
        raise ValueError(
            f"{path} is no .cs file, and only those have a --passthrough: leave it out"
        )
    if path.suffix in STACKS:
        count = open_mrc(path, quiet=True).shape[0]
        table = pd.DataFrame({"rlnImageName": image_names(count, path.name)})
        optics, original = pd.DataFrame([{CTF_APPLIED: 0}]), None
    elif path.suffix == ".cs":
        original = read_cs(path, passthrough)
        optics, table = None, cs_table(original, path)
    else:
        star = StarFile(path)
        original = star, star.particles()
        table, named = star.frame(original[1]), star.only("optics")
        optics = None if named is None else star.frame(named)
    stacks = Stacks(table["rlnImageName"], path, root)
    optics, table = _grouped(optics, table, path)
    return ParticleFile(path, *_in_A(optics, table, stacks, pixel_size_A), stacks, original)


def read_particles(path: str | os.PathLike) -> Particles:
    """Read a particle file and its images into memory, see `open_particles`."""
    return open_particles(path).read()


def stream_particles(
    path: str | os.PathLike, *, half: int | None = None, batch_size: int = 256
) -> Iterator[Particles]:
    """Read a particle file some rows at a time, see `ParticleFile.stream`."""
    return open_particles(path).stream(batch_size, half)


def _grouped(optics, table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables with rlnOpticsGroup in both, one row for each group in use.

    Files of RELION 3.0 have no optics table; ASPIRE writes columns of it into the particles' table.
    """
    columns = [name for name in (*MICROSCOPE, *PIXEL_SIZES) if name in table]
    if optics is None:
        number = table.groupby(columns, dropna=False, sort=False).ngroup() + 1 if columns else 1
        table = table.assign(rlnOpticsGroup=number)
        optics = table[["rlnOpticsGroup"]]
    optics = optics.drop_duplicates()
    for each in (optics, table):
        if "rlnOpticsGroup" not in each:
            if len(optics) != 1:
                raise ValueError(f"{path} lacks rlnOpticsGroup: add this column")
            each["rlnOpticsGroup"] = optics.get("rlnOpticsGroup", pd.Series([1])).iloc[0]
    used = set(table["rlnOpticsGroup"])
    optics = optics[optics["rlnOpticsGroup"].isin(used)].reset_index(drop=True)
    if missing := used - set(optics["rlnOpticsGroup"]):
        raise ValueError(f"{path} has particles of optics group {missing}, not listed: add it")
    if optics["rlnOpticsGroup"].duplicated().any():
        raise ValueError(f"{path} lists an optics group twice, with other values: correct it")
    columns = [name for name in columns if name not in optics]
    groups = table.groupby("rlnOpticsGroup")
    for name in columns:
        if groups[name].nunique().max() > 1:
            raise ValueError(f"{path} has {name} that differs within an optics group: split it")
    if columns:
        optics = optics.merge(groups[columns].first().reset_index(), on="rlnOpticsGroup")
    return optics, table


def _in_A(optics, table, stacks: Stacks, given: float | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables with pixel sizes (0 if unknown) and shifts in Å, whatever words the file has."""
    pixel_A, (low, high) = _stated_pixel_size(optics), PIXEL_SIZES_A
    if given is not None:
        if not low <= given <= high:
            raise ValueError(f"a pixel size of {given:g} Å: give one between {low} and {high}")
        if pixel_A is not None and (abs(pixel_A - given) > SAME_PIXEL * given).any():
            raise ValueError(f"{stacks.path} states {pixel_A.iloc[0]:g} Å/px, not {given:g}")
        pixel_A = pd.Series(given, index=optics.index) if pixel_A is None else pixel_A
    if pixel_A is None:
        first = table.reset_index().drop_duplicates("rlnOpticsGroup").set_index("rlnOpticsGroup")
        pixel_A = stacks.pixel_A[first["index"].loc[optics["rlnOpticsGroup"]]]
        pixel_A = np.where((low <= pixel_A) & (pixel_A <= high), pixel_A, 0.0)
    pixel_A = np.asarray(pixel_A, dtype=float)
    if len(bad := pixel_A[(pixel_A != 0) & ~((low <= pixel_A) & (pixel_A <= high))]):
        raise ValueError(
            f"{stacks.path} states a pixel size of {bad[0]:g} Å, not {low} to {high}: correct it"
        )
    optics = optics.assign(rlnImagePixelSize=pixel_A)
    its_pixel_A = optics.set_index("rlnOpticsGroup")["rlnImagePixelSize"]
    its_pixel_A = its_pixel_A.loc[table["rlnOpticsGroup"]].replace(0.0, np.nan).to_numpy()
    in_px = dict(zip(ORIGINS, ("rlnOriginY", "rlnOriginX"), strict=True))
    shifts = {
        new: table[old] * its_pixel_A if old in table else 0.0
        for new, old in in_px.items()
        if new not in table
    }
    return optics, table.assign(**shifts)


def _stated_pixel_size(optics: pd.DataFrame) -> pd.Series | None:
    """Å per pixel of each group, or None if it is not stated."""
    for name in ("rlnImagePixelSize", "rlnPixelSize"):
        if name in optics:
            return optics[name].astype(float)
    if {"rlnDetectorPixelSize", "rlnMagnification"} <= set(optics):  # µm on the detector
        return 1e4 * optics["rlnDetectorPixelSize"] / optics["rlnMagnification"]
    return None
