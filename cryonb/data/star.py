"""STAR files and stacks of RELION, read with every check."""

from __future__ import annotations

import os
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import starfile
import torch

from cryonb.base.files import existing

ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
OPTICS = ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]
ORIGINS = ["rlnOriginYAngst", "rlnOriginXAngst"]  # (y, x), as in shifts_px


def image_names(n: int, stack: str) -> list[str]:
    """Names of all images of a stack: 000001@stack, 000002@stack, ..."""
    return [f"{i:06d}@{stack}" for i in range(1, n + 1)]


def read_blocks(star_path: str | os.PathLike) -> dict[str, pd.DataFrame]:
    """Return all tables of a STAR file as they stand; FileNotFoundError, ValueError if none."""
    try:
        blocks = starfile.read(existing(star_path), always_dict=True)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{star_path} is not a readable STAR file ({error})") from error
    return {
        name: block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
        for name, block in blocks.items()
    }


def particle_block(blocks: dict[str, pd.DataFrame], star_path: str | os.PathLike) -> str:
    """Name of the block that lists the particles, in RELION 3.1's words or those of 3.0."""
    listing = [name for name, table in blocks.items() if "rlnImageName" in table]
    if "particles" in listing or len(listing) == 1:
        return "particles" if "particles" in listing else listing[0]
    raise ValueError(f"{star_path} lists no particles (rlnImageName): choose another file")


def modern_tables(
    blocks: dict[str, pd.DataFrame], star_path: str | os.PathLike
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Optics and particle table in the words of RELION 3.1, also of a file of RELION 3.0.

    ValueError without optics and pixel size, or if an optics group is not listed.
    """
    table = blocks[particle_block(blocks, star_path)]
    optics = blocks.get("optics")
    if optics is None:
        optics, table = _upgraded(table, star_path)
    _require(["rlnOpticsGroup"], table, star_path)
    _require(["rlnOpticsGroup", "rlnImagePixelSize"], optics, star_path)
    unknown = set(table["rlnOpticsGroup"]) - set(optics["rlnOpticsGroup"])
    if unknown:
        raise ValueError(f"{star_path} has particles of optics group {unknown}, not listed: add it")
    return optics, table


def _require(columns: list[str], table: pd.DataFrame, star_path) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"{star_path} lacks {', '.join(missing)}: add these columns")


def _upgraded(table: pd.DataFrame, star_path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Optics groups and shifts in Å for a table of RELION 3.0, which has neither."""
    if "rlnImagePixelSize" in table:
        pixel = table["rlnImagePixelSize"].astype(float)
    elif {"rlnDetectorPixelSize", "rlnMagnification"} <= set(table):  # µm on the detector
        pixel = 1e4 * table["rlnDetectorPixelSize"] / table["rlnMagnification"]
    else:
        raise ValueError(
            f"{star_path} lacks the optics block of RELION 3.1, and the pixel size of 3.0 "
            "(rlnDetectorPixelSize, rlnMagnification): convert it with relion_convert_star"
        )
    kept = [name for name in OPTICS if name in table]
    groups = table[kept].assign(rlnImagePixelSize=pixel.round(6)).astype(float)
    optics = groups.drop_duplicates().reset_index(drop=True)
    optics["rlnOpticsGroup"] = np.arange(1, len(optics) + 1)
    number = groups.merge(optics, how="left")["rlnOpticsGroup"].to_numpy()
    in_px = {"rlnOriginYAngst": "rlnOriginY", "rlnOriginXAngst": "rlnOriginX"}
    shifts = {new: table[old] * pixel for new, old in in_px.items() if old in table}
    return optics, table.assign(rlnOpticsGroup=number, **shifts)


def read_tables(star_path: str | os.PathLike) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return optics and particle table with poses; see `cryonb.data.particles.read_particles`."""
    optics, table = modern_tables(read_blocks(star_path), star_path)
    _require([*ANGLES, *ORIGINS], table, star_path)
    return optics, table


class Stacks:
    """Images that a STAR file names, read row by row from memory-mapped stacks.

    All stacks are looked at when it is made, so that what is missing, cut short or of another box
    is known before any work begins; pixels are read, and looked at for NaN, when asked for.

    Attributes
    ----------
    box : (int, int)
        Pixels (y, x) of every image.
    """

    def __init__(self, names: pd.Series, star_path: str | os.PathLike):
        self.star_path = Path(star_path)
        parts = names.astype(str).str.extract(r"^(\d+)@(.+)$")
        if parts.isna().any(axis=None):
            bad = names[parts.isna().any(axis=1)].iloc[0]
            raise ValueError(f"image name {bad!r} in {star_path}: write it as 000001@stack.mrcs")
        if len(parts) == 0:
            raise ValueError(f"{star_path} lists no particles: choose another file")
        self._number = parts[0].astype(int).to_numpy() - 1
        self._stack = parts[1].to_numpy()
        boxes = {self._check(stack) for stack in dict.fromkeys(self._stack)}
        if len(boxes) > 1:
            listed = " and ".join(map(str, sorted(boxes)))
            raise ValueError(
                f"{star_path} mixes box sizes {listed} px: "
                "rescale to one with relion_image_handler, or read them apart"
            )
        self.box = boxes.pop()

    def __len__(self) -> int:
        return len(self._number)

    @property
    def paths(self) -> list[Path]:
        """Files of the stacks."""
        return [_path_of(stack, self.star_path) for stack in dict.fromkeys(self._stack)]

    def _check(self, stack: str) -> tuple[int, int]:
        numbers = self._number[self._stack == stack]
        with open_stack(stack, self.star_path) as mrc:
            _check_images(mrc, stack)
            count, *box = _three_axes(mrc.data).shape
        if numbers.max() >= count or numbers.min() < 0:
            raise ValueError(
                f"{self.star_path} asks for image {numbers.max() + 1} of {stack}, which holds "
                f"{count}: use the stack that belongs to the STAR file"
            )
        return tuple(box)

    def read(self, rows) -> torch.Tensor:
        """Images (n, y, x), float32, of rows of the table; ValueError if one holds NaN."""
        rows = np.arange(len(self))[rows]
        images = np.empty((len(rows), *self.box), dtype=np.float32)
        for stack in dict.fromkeys(self._stack[rows]):
            its = np.flatnonzero(self._stack[rows] == stack)
            with open_stack(stack, self.star_path) as mrc:
                images[its] = _three_axes(mrc.data)[self._number[rows[its]]]
        bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2)))
        if len(bad):
            raise ValueError(
                f"{len(bad)} images of {self.star_path} hold NaN or infinite pixels, the first in "
                f"row {rows[bad[0]] + 1}: remove these rows or make the images again"
            )
        return torch.from_numpy(images)


def _check_images(mrc, name: str) -> None:
    """ValueError unless an open file holds real square images, and no volume."""
    data = _three_axes(mrc.data)
    if np.iscomplexobj(data):
        raise ValueError(f"{name} holds a Fourier transform (complex numbers): give real images")
    if data.ndim != 3 or data.shape[1] != data.shape[2]:
        raise ValueError(
            f"{name} holds images of {' × '.join(map(str, data.shape[1:]))} px: particles are "
            "square; extract them from the micrograph first"
        )
    cubic = data.shape[0] == data.shape[1] > 1
    if cubic and mrc.is_volume() and not name.endswith(".mrcs"):
        raise ValueError(
            f"{name} is a volume ({len(data)}³, space group {int(mrc.header.ispg)}): give a stack "
            "of particles; if it is one, rename it to .mrcs"
        )


def _three_axes(data: np.ndarray) -> np.ndarray:
    return data if data.ndim == 3 else data[None]


def _path_of(stack: str, star_path: Path) -> Path:
    path = next((p for p in (star_path.parent / stack, Path(stack)) if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{stack}, named in {star_path}, exists neither beside it nor here: "
            "put the stack there or run in RELION's project folder"
        )
    return path


def open_stack(stack: str, star_path: Path):
    """Open a stack, named relative to its STAR file, as a memory map; clear errors if not whole."""
    path = _path_of(stack, star_path)
    try:
        return mrcfile.mmap(path, mode="r")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged or cut short ({error}): copy or make it again"
        ) from error
