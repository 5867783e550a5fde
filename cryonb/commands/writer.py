"""Stacks written piece by piece."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mrcfile
import numpy as np
import torch

from cryonb.base.files import NOT_DETERMINED, check_writable
from cryonb.data.mrc import HEADER
from cryonb.data.particle_file import STACKS, ParticleFile


def hidden(path: Path) -> tuple[Path, Path]:
    """Names of a stack that is not whole yet, and of the record of what was asked for."""
    return path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.run.json")


class StackWriter:
    """A stack that is appended to and renamed when whole; MRC mode 2.

    Attributes
    ----------
    done : int
        Images that an earlier run with the same parameters has left.
    """

    def __init__(self, path: Path, source: ParticleFile, count: int, asked: dict):
        self.path, self.count, self.box = path, count, source.stacks.box
        self.part, self.record = hidden(path)
        self.done = 0
        if self.part.is_file() and self.record.is_file():
            if json.loads(self.record.read_text()) != asked:
                raise ValueError(
                    f"{self.part} is an unfinished run with other options or another input: give "
                    f"those to go on, or delete it to start anew"
                )
            self.done = max(0, self.part.stat().st_size - HEADER) // (4 * self.box**2)
            return
        try:
            write_header(self.part, self.count, source)
            self.record.write_text(json.dumps(asked))
        except OSError as error:
            raise OSError(
                f"cannot write to {path.parent} ({error.strerror}): choose another folder"
            ) from error

    @property
    def missing_bytes(self) -> int:
        """Room that the rest of the stack needs."""
        return 4 * self.box**2 * (self.count - self.done)

    def write(self, first: int, images: torch.Tensor) -> None:
        """Write images (n, y, x) at row `first`; ValueError if they are not finite."""
        if not torch.isfinite(images).all():
            raise ValueError(f"{self.path} is not written: NaN after image {first}")
        try:
            with open(self.part, "r+b") as file:
                file.truncate(HEADER + 4 * self.box**2 * first)
                file.seek(0, os.SEEK_END)
                file.write(np.ascontiguousarray(images.numpy(), dtype="<f4").tobytes())
        except OSError as error:
            kept = f"{self.path}: {error.strerror}; {first:,} images are kept"
            raise OSError(error.errno, kept) from error

    def finish(self) -> None:
        """Give the whole stack its name."""
        os.replace(self.part, self.path)
        self.record.unlink()


def write_header(path: Path, count: int, source: ParticleFile) -> None:
    """MRC2014 header of a float32 image stack, its statistics marked as not determined."""
    pixel_A = float(source.optics["rlnImagePixelSize"].iloc[0])
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.zeros((1, source.stacks.box, source.stacks.box), dtype=np.float32))
        mrc.set_image_stack()
        mrc.voxel_size = pixel_A
        header = mrc.header.copy()
    for name, value in ({"nz": count} | NOT_DETERMINED).items():
        header[name] = value
    path.write_bytes(header.tobytes())


def stack_paths(source: ParticleFile, out: Path, samples: int) -> list[Path]:
    """Stacks to write, of means and deviations; none of another kind, or in place of the input."""
    if samples < 0:
        raise ValueError(f"samples is {samples}: ask for none (the posterior mean), one or more")
    if source.star and out.suffix != ".star":
        raise ValueError(f"{out}: the input is a STAR file, so end the output in .star")
    if not source.star and out.suffix not in STACKS:
        raise ValueError(f"{out}: the input is a stack, so end the output in .mrcs")
    if len(out.name.split()) != 1:
        raise ValueError(f"{out.name!r} has blanks, at which RELION would cut it: choose another")
    check_writable(out)
    stack = out.with_suffix(".mrcs") if source.star else out
    paths = [stack, *([stack.with_name(f"{stack.stem}_std{stack.suffix}")] if samples > 1 else [])]
    taken = {source.path.resolve(), *(p.resolve() for p in source.stacks.paths)}
    if taken & {p.resolve() for p in (out, *paths)}:
        raise ValueError(f"{out} would replace the input, which is never touched: choose another")
    return paths


def write_star(out: Path, source: ParticleFile, paths: list[Path]) -> None:
    """Write the input's blocks with the names of the new images, and say what was written."""
    source.write_like(out, paths[0].name)
    print(f"wrote {out}" + "".join(f" and {path}" for path in paths if path != out))
