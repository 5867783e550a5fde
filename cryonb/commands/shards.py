"""Stacks that any number of processes fill, here or on a cluster, and the last one names.

A run begins with a record beside its output: a line of JSON that says what was asked for, then one
character per batch, ``.`` or, when its images are written, ``x``. Stacks are made at full length
under hidden names; a process writes its batches into their rows. Nothing is locked or joined, and a
run that was cut off goes on with the batches that are missing.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mrcfile
import numpy as np
import torch

from cryonb.base.files import NOT_DETERMINED, check_room

HEADER = 1024  # bytes of an MRC header
TO_DO, DONE = b".", b"x"


@dataclass(frozen=True)
class Unfinished:
    """Stacks of a run that has begun, see `begin`.

    Attributes
    ----------
    paths, parts : list of Path
        Names of the stacks when they are whole, and until then.
    record : Path
    shape : (int, int)
        Images in each stack, pixels a side.
    batch_size : int
    columns : int
        Numbers for each image, kept beside the stacks until `finish`.
    found : list
        What the process that began the run measured, for all to use.
    """

    paths: list[Path]
    parts: list[Path]
    record: Path
    shape: tuple[int, int]
    batch_size: int
    columns: int = 0
    found: list = field(default_factory=list)

    @property
    def _kept(self) -> Path:
        return self.parts[0].with_name(f"{self.parts[0].stem}.numbers.part")

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of all images (n, columns)."""
        return np.fromfile(self._kept, "<f8").reshape(self.shape[0], self.columns)

    @property
    def missing(self) -> list[int]:
        """Numbers of the batches that are not written yet."""
        marks = self.record.read_bytes().partition(b"\n")[2]
        return [batch for batch in range(len(marks)) if marks[batch : batch + 1] != DONE]

    def rows(self, batch: int) -> range:
        """Rows of a batch."""
        return range(self.shape[0])[batch * self.batch_size : (batch + 1) * self.batch_size]

    def write(self, batch: int, stacks: list[torch.Tensor], numbers=None) -> None:
        """Write images (n, y, x) of a batch to each stack, and its numbers (n, columns).

        ValueError if images are not finite.
        """
        first, box = self.rows(batch)[0], self.shape[1]
        if not all(torch.isfinite(images).all() for images in stacks):
            raise ValueError(f"{self.paths[0]} is not written: NaN after image {first}")
        try:
            for part, images in zip(self.parts, stacks, strict=True):
                data = np.ascontiguousarray(images.numpy(), dtype="<f4").tobytes()
                _overwrite(part, HEADER + 4 * box**2 * first, data)
            if self.columns:
                data = np.ascontiguousarray(numbers, dtype="<f8").tobytes()
                _overwrite(self._kept, 8 * self.columns * first, data)
            head = self.record.read_bytes().index(b"\n") + 1
            _overwrite(self.record, head + batch, DONE)
        except OSError as error:
            if not self.record.exists() or not self.missing:
                return  # another process did the same and was faster
            kept = f"{self.paths[0]}: {error.strerror}; what is finished is kept"
            raise OSError(error.errno, kept) from error

    def finish(self, write_table: Callable[[], None]) -> bool:
        """Give whole stacks their names and write the table that lists them; False if not whole."""
        if not self.record.exists():  # another process was last, too
            return all(path.exists() for path in self.paths)
        if self.missing:
            return False
        for part, path in zip(self.parts, self.paths, strict=True):
            if part.exists():
                os.replace(part, path)
        write_table()
        self.record.unlink(missing_ok=True)
        self._kept.unlink(missing_ok=True)
        return True


def begin(
    paths: list[Path],
    shape: tuple[int, int],
    pixel_size_A: float,
    batch_size: int,
    asked: dict,
    columns: int = 0,
    measure: Callable[[], list] = list,
) -> Unfinished:
    """Begin a run, or join one that is going on or was cut off; see `Unfinished`.

    Parameters
    ----------
    asked : dict
        Input and options, as JSON has them: ValueError if an unfinished run has others.
    measure : callable
        Makes what `Unfinished.found` holds, as JSON has it; called by whoever begins.
    """
    batches = -(-shape[0] // batch_size)
    record = paths[0].with_name(f".{paths[0].name}.run")
    if not record.exists():
        room = len(paths) * 4 * shape[1] ** 2 * shape[0]
        check_room(record.resolve().parent, room, "or choose another folder")
        head = {"id": secrets.token_hex(4), "asked": asked, "found": measure()}
        text = json.dumps(head).encode() + b"\n" + TO_DO * batches
        _make_once(record, lambda path: path.write_bytes(text))
    try:
        head = json.loads(record.read_bytes().partition(b"\n")[0])
        run, found, same = head["id"], head["found"], head["asked"] == asked
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record} is no record of a run: delete it to start anew") from error
    if not same:
        raise ValueError(
            f"{record} is an unfinished run with other options or another input: give those to "
            "go on, or delete it to start anew"
        )
    parts = [path.with_name(f".{path.name}.{run}.part") for path in paths]
    for old in record.parent.glob(f".{paths[0].name}.*.part"):  # of a record that was deleted
        if f".{run}." not in old.name:
            old.unlink(missing_ok=True)
    unfinished = Unfinished(paths, parts, record, shape, batch_size, columns, found)
    if columns and unfinished.missing and not unfinished._kept.exists():
        empty = bytes(8 * columns * shape[0])
        _make_once(unfinished._kept, lambda path: path.write_bytes(empty))
    for part in parts:
        if not part.exists() and unfinished.missing:
            _make_once(part, lambda path: _make_stack(path, shape, pixel_size_A))
    return unfinished


def split(count: int, shards: int) -> list[range]:
    """Batches of each shard, in order, about as many in each."""
    edges = [k * count // shards for k in range(shards + 1)]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _make_stack(path: Path, shape: tuple[int, int], pixel_size_A: float) -> None:
    """Float32 image stack of zeros, its statistics marked as not determined."""
    count, box = shape
    with mrcfile.new_mmap(path, (count, box, box), mrc_mode=2, overwrite=True) as mrc:
        mrc.set_image_stack()
        mrc.voxel_size = pixel_size_A
        for name, value in NOT_DETERMINED.items():
            mrc.header[name] = value


def _make_once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file under another name and give it its own, unless another process was first."""
    own = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        make(own)
        os.link(own, path)
    except FileExistsError:
        return
    except OSError as error:
        if not own.exists():
            raise OSError(
                f"cannot write to {path.parent} ({error.strerror}): choose another folder"
            ) from error
        if not path.exists():  # a disk without hard links
            os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)


def _overwrite(path: Path, place: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)
