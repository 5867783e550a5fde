"""Images that particle files name, read row by row from memory-mapped stacks."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cryonb.data.mrc import Mrc, open_mrc, say_odd

OPEN = 64  # memory maps that are kept open


class Stacks:
    """Images of a particle file, in the order of its rows.

    Headers of all stacks are looked at when it is made, so that what is missing, cut short or of
    another box is known before any work begins. `names` are as RELION writes them, such as
    ``000001@stack.mrcs``, or files of one image; `path` is that of the file that lists them.

    Attributes
    ----------
    box : int
        Pixels a side of every image.
    paths : list of Path
        Files of the stacks.
    pixel_A : numpy.ndarray (n,)
        Å per pixel in the header of each image's stack; 0 where it does not say.
    """

    def __init__(self, names: pd.Series, path: str | os.PathLike, root=None):
        self.path = Path(path)
        if len(names) == 0:
            raise ValueError(f"{path} lists no particles: choose another file")
        numbers, files = zip(*map(_numbered, names.astype(str)), strict=True)
        if min(numbers) < 1:
            bad = names.iloc[numbers.index(min(numbers))]
            raise ValueError(
                f"image name {bad!r} in {path}: write it as 000001@stack.mrcs; numbers begin at 1"
            )
        self._number = np.array(numbers, dtype=np.int64) - 1
        self._stack, stacks = pd.factorize(np.array(files, dtype=object))
        folders = _folders(self.path, root)
        self.paths = [_find(stack, folders, path) for stack in stacks]
        mrcs = [open_mrc(each, quiet=True) for each in self.paths]
        self._check(mrcs)
        self.box = mrcs[0].shape[1]
        self.pixel_A = np.array([mrc.voxel_A[2] for mrc in mrcs])[self._stack]
        self._map = lru_cache(OPEN)(lambda k: open_mrc(self.paths[k], quiet=True).data)

    def __len__(self) -> int:
        return len(self._number)

    def _check(self, mrcs: list[Mrc]) -> None:
        last = pd.Series(self._number).groupby(self._stack).max()
        for mrc, number in zip(mrcs, last, strict=True):
            _check_images(mrc)
            if number >= mrc.shape[0]:
                raise ValueError(
                    f"{self.path} asks for image {number + 1} of {mrc.path}, which holds "
                    f"{mrc.shape[0]}: use the stack that belongs to it"
                )
        boxes = sorted({mrc.shape[1] for mrc in mrcs})
        if len(boxes) > 1:
            raise ValueError(
                f"{self.path} mixes box sizes {' and '.join(map(str, boxes))} px: "
                "rescale to one with relion_image_handler, or read them apart"
            )
        if odd := [mrc for mrc in mrcs if mrc.odd]:
            say_odd(odd[0], f" (and {len(odd) - 1} more)" if odd[1:] else "")

    def read(self, rows=slice(None)) -> torch.Tensor:
        """Images (n, y, x), float32, of rows of the table; ValueError if one holds NaN."""
        rows = np.arange(len(self))[rows]
        images = np.empty((len(rows), self.box, self.box), dtype=np.float32)
        for stack in pd.unique(self._stack[rows]):
            its = np.flatnonzero(self._stack[rows] == stack)
            images[its] = self._map(int(stack))[self._number[rows[its]]]
        if len(bad := np.flatnonzero(~np.isfinite(images).all(axis=(1, 2)))):
            raise ValueError(
                f"{len(bad)} images of {self.path} hold NaN or infinite pixels, the first in "
                f"row {rows[bad[0]] + 1}: remove these rows or make the images again"
            )
        return torch.from_numpy(images)


def _numbered(name: str) -> tuple[int, str]:
    """Number and file of an image; 0 if it is wrong. A file alone holds one image."""
    number, at, file = name.partition("@")
    if not at:
        return 1, name
    right = number.isdecimal() and len(number) < 12 and file
    return (int(number) if right else 0), file


def _check_images(mrc: Mrc) -> None:
    """ValueError unless a file holds real square images, and no volume."""
    sections, rows, columns = mrc.shape
    group = int(mrc.header["ispg"])
    wrong = None
    if mrc.dtype.kind == "c":
        wrong = "holds a Fourier transform (complex numbers): give real images"
    elif rows != columns:
        wrong = f"holds images of {rows} × {columns} px, not square: extract particles from it"
    elif sections == rows > 1 and group != 0 and mrc.path.suffix != ".mrcs":
        wrong = f"is a volume (space group {group}); if it is a stack, rename it to .mrcs"
    if wrong:
        raise ValueError(f"{mrc.path} {wrong}")


def _folders(path: Path, root) -> list[Path]:
    """Where stacks are looked for: programs name them from their project's folder."""
    here = path.resolve().parent
    given = [] if root is None else [Path(root)]
    return list(dict.fromkeys([*given, here, *here.parents[:2], Path.cwd()]))


def _find(stack: str, folders: list[Path], path) -> Path:
    name = stack.removeprefix(">")  # cryoSPARC marks some of its paths so
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    moved = folders[0] / Path(name).name
    if moved.is_file():  # beside the file that lists it, or in --root, without its old folder
        return moved
    looked = ", ".join(map(str, folders))
    raise FileNotFoundError(
        f"{stack}, named in {path}, is in none of {looked}: say where with --root"
    )
