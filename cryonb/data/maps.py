"""MRC and CCP4 maps on disk, and resampling a map to another grid."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import mrcfile
import numpy as np
import torch

from cryonb.base.files import beside
from cryonb.data.mrc import Mrc, open_mrc

# What says where a map lies and whose it is.
KEPT_FIELDS = (
    "nxstart nystart nzstart mx my mz cella cellb mapc mapr maps ispg exttyp origin nlabl label"
).split()

PIXEL_SIZES_A = 0.01, 1000  # what a header may say


class PlacedMap(NamedTuple):
    """A map and where it lies.

    Attributes
    ----------
    map : Tensor (z, y, x), float32
    pixel_size_A : float
    first_A : (float, float, float)
        Where the first voxel lies: (z, y, x) in Å.
    """

    map: torch.Tensor
    pixel_size_A: float
    first_A: tuple[float, float, float]


def read_map(
    path: str | os.PathLike, pixel_size_A: float | None = None
) -> tuple[torch.Tensor, float]:
    """Read a map (z, y, x) and its pixel size as `read_placed_map` does, not where it lies."""
    return read_placed_map(path, pixel_size_A)[:2]


def read_placed_map(path: str | os.PathLike, pixel_size_A: float | None = None) -> PlacedMap:
    """Read an MRC or CCP4 map (gzipped or not), its axes in the order (z, y, x).

    It lies where the header's ORIGIN says, or NSTART voxels off where ORIGIN is zero, as in
    ChimeraX (gemmi looks at NSTART only, RELION at neither). Both count along x, y and z, whatever
    order MAPC, MAPR and MAPS give to columns, rows and sections.

    Parameters
    ----------
    pixel_size_A : float, optional
        Instead of what the header says.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Damaged, not one volume, voxels that are NaN or not cubes, an unknown pixel size.
    """
    mrc = open_mrc(path)
    data, order = mrc.data, _axis_order(mrc.header)
    images = mrc.header["ispg"] == 0 and mrc.header["mz"] == 1 or Path(path).suffix == ".mrcs"
    if images and len(data) > 1:
        raise ValueError(f"{path} is a stack of {len(data)} images: give a map")
    if min(data.shape) == 1 or mrc.volumes > 1 or np.iscomplexobj(data):
        raise ValueError(f"{path} holds {data.dtype} of shape {data.shape}: give a real 3D map.")
    if sorted(order) != [1, 2, 3]:
        raise ValueError(f"{path} has the axes {order} as MAPS, MAPR, MAPC: correct its header")
    if not np.isfinite(data).all():
        count = np.count_nonzero(~np.isfinite(data))
        raise ValueError(f"{path} has {count} NaN or infinite voxels: repair the map first.")
    pixel_A = _cubic_voxel(mrc, pixel_size_A)
    to_zyx = [order.index(axis) for axis in (3, 2, 1)]
    grid = np.array(data.transpose(to_zyx), dtype=np.float32, order="C")
    return PlacedMap(torch.from_numpy(grid), pixel_A, _first_voxel(mrc, to_zyx, pixel_A))


def _first_voxel(mrc: Mrc, to_zyx: list[int], pixel_A: float) -> tuple[float, float, float]:
    """Where the header puts the first voxel: (z, y, x) in Å; a note if it says two things."""
    start = [int(mrc.header[name]) for name in ("nzstart", "nystart", "nxstart")]
    start_A = np.array(start)[to_zyx] * pixel_A
    origin_A = np.array([float(mrc.header["origin"][axis]) for axis in "zyx"])
    if not np.isfinite(origin_A).all():
        raise ValueError(f"{mrc.path} has an ORIGIN that is not a number: correct its header")
    if not origin_A.any():
        return tuple(start_A.tolist())
    if start_A.any() and np.abs(origin_A - start_A).max() > 0.1 * pixel_A:
        print(f"note: ORIGIN and NSTART of {mrc.path} disagree; ORIGIN counts", file=sys.stderr)
    return tuple(origin_A.tolist())


def _cubic_voxel(mrc: Mrc, asked_A: float | None) -> float:
    """Edge of a voxel in Å, as asked or by the header; ValueError if unknown, or it is no cube."""
    angles = [float(mrc.header["cellb"][name]) for name in ("alpha", "beta", "gamma")]
    if any(angles) and not np.allclose(angles, 90, rtol=0, atol=0.01):
        raise ValueError(
            f"{mrc.path} has cell angles of {angles[0]:g}, {angles[1]:g} and {angles[2]:g}°: "
            "resample it to a grid with right angles"
        )
    z, y, x = mrc.voxel_A if asked_A is None else (asked_A,) * 3
    low, high = PIXEL_SIZES_A
    if not low <= min(z, y, x) <= max(z, y, x) <= high:
        raise ValueError(
            f"{mrc.path} has no pixel size between {low} and {high} Å but one of {x:g} × {y:g} × "
            f"{z:g} Å: give it (--pixel-size), or write the cell's edges into the header"
        )
    if max(z, y, x) - min(z, y, x) > 1e-3 * max(z, y, x):
        raise ValueError(
            f"{mrc.path} has voxels of {x:g} × {y:g} × {z:g} Å (x, y, z), which are not cubes: "
            "correct the header, or resample the map to one pixel size."
        )
    return z


def _axis_order(header: np.void) -> list[int]:
    """Which of x, y, z (1, 2, 3) sections, rows and columns are; some programs leave them empty."""
    order = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    return order if any(order) else [3, 2, 1]


def write_map(path: str | os.PathLike, map: torch.Tensor, pixel_size_A: float) -> None:
    """Write a volume (z, y, x) as a float32 MRC map, beside its place first, then renamed.

    OSError if the disk is full or not writable; nothing half-written stays behind.
    """
    with _new_file(path, map.detach().cpu().numpy()) as mrc:
        mrc.set_volume()
        mrc.voxel_size = pixel_size_A


def write_stack(path: str | os.PathLike, images: torch.Tensor, pixel_size_A: float) -> None:
    """Write images (n, y, x) as a float32 MRC stack, as `write_map` writes a volume."""
    with _new_file(path, images.detach().cpu().numpy()) as mrc:
        mrc.set_image_stack()
        mrc.voxel_size = pixel_size_A


@contextmanager
def _new_file(path: str | os.PathLike, data: np.ndarray) -> Iterator[mrcfile.mrcfile.MrcFile]:
    """Give an MRC file of these float32 data, written beside its place; its header can be set.

    ValueError if the data are not finite: a file of NaN would be a result that looks like one.
    """
    if not np.isfinite(data).all():
        count = np.count_nonzero(~np.isfinite(data))
        raise ValueError(f"{path} is not written, {count} of its values are NaN or infinite")
    try:
        zipped = "gzip" if Path(path).suffix == ".gz" else None
        with beside(path) as part, mrcfile.new(part, compression=zipped, overwrite=True) as mrc:
            mrc.set_data(np.ascontiguousarray(data, dtype=np.float32))
            yield mrc
    except OSError as error:
        raise OSError(
            f"could not write {path} ({error.strerror or error}): free some space or choose "
            "another folder"
        ) from error


def write_map_like(
    path: str | os.PathLike,
    map: torch.Tensor,
    like: str | os.PathLike,
    pixel_size_A: float,
    label: str = "",
) -> None:
    """Write a volume (z, y, x) as float32 with the header of another file of the same grid.

    Cell, place, order of axes, space group, extended header and labels are those of `like`;
    statistics are the new map's, and `label` becomes one label more where there is room. A cell
    that says another pixel size than `pixel_size_A`, or none, is replaced.
    ValueError if the grids differ, OSError as in `write_map`.
    """
    old = open_mrc(like, quiet=True)
    data = map.detach().cpu().numpy().transpose([3 - axis for axis in _axis_order(old.header)])
    if data.shape != old.shape:
        raise ValueError(f"A map of {data.shape} voxels has no place in {like}.")
    with _new_file(path, data) as mrc:
        mrc.set_extended_header(np.frombuffer(old.extended_header, "V1"))
        for name in KEPT_FIELDS:
            mrc.header[name] = old.header[name]
        if label and 0 <= mrc.header.nlabl < 10:
            mrc.header.label[mrc.header.nlabl] = label.encode()
            mrc.header.nlabl += 1
        if not np.allclose(old.voxel_A, pixel_size_A, rtol=1e-3):
            mrc.header.mx, mrc.header.my, mrc.header.mz = map.shape[::-1]
            mrc.header.cella = tuple(n * pixel_size_A for n in map.shape[::-1])


def level_and_scale(map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and standard deviation over the last three axes: solvent is most of a box."""
    flat = map.flatten(-3)
    level, scale = flat.median(-1).values, flat.std(-1)
    return level[..., None, None, None], scale.clamp_min(1e-20)[..., None, None, None]


def to_cube(given: PlacedMap) -> tuple[PlacedMap, tuple[slice, slice, slice]]:
    """Pad a map about its middle with its median, to a cube; and what cuts the cube back."""
    map, pixel_A, first_A = given
    size = max(map.shape)
    if min(map.shape) == size:
        return given, (slice(None),) * 3
    before = [size // 2 - n // 2 for n in map.shape]
    cut = tuple(slice(b, b + n) for b, n in zip(before, map.shape, strict=True))
    cube = map.new_full((size,) * 3, float(map.median()))
    cube[cut] = map
    first_A = tuple(x - b * pixel_A for x, b in zip(first_A, before, strict=True))
    return PlacedMap(cube, pixel_A, first_A), cut


def overlap(a: PlacedMap, b: PlacedMap) -> float:
    """What the boxes of two maps share, as a part of the smaller box."""
    first = np.array([a.first_A, b.first_A])
    edges = np.array([np.array(x.map.shape) * x.pixel_size_A for x in (a, b)])
    shared = ((first + edges).min(0) - first.max(0)).clip(0)
    return float(shared.prod() / edges.prod(1).min())


def onto_grid(
    given: PlacedMap,
    box_size: int,
    pixel_size_A: float,
    first_A: tuple[float, float, float] | None = None,
    fill: float | None = None,
) -> torch.Tensor:
    """Bring a map onto another grid by where both lie, see `resample`.

    Parameters
    ----------
    box_size, pixel_size_A
        Of the result. A pixel size within 1e-3 of the map's own is taken as the same.
    first_A : (float, float, float), optional
        Where the result's first voxel lies: (z, y, x) in Å. None: the middles of both grids meet.
    fill : float, optional
        Beyond the map's box; by default its median.

    Returns
    -------
    Tensor (z, y, x), float32
    """
    map, old_A, old_first_A = given
    step = pixel_size_A / old_A
    step = 1.0 if abs(step - 1) < 1e-3 else step
    if first_A is None:
        first = [n // 2 - box_size // 2 * step for n in map.shape]
    else:
        first = [(new - old) / old_A for new, old in zip(first_A, old_first_A, strict=True)]
    if step == 1 and set(map.shape) == {box_size} and max(abs(x) for x in first) < 1e-2:
        return map
    fill = float(map.median()) if fill is None else fill
    return resample(map - fill, box_size, step, first) + fill


def resample(
    map: torch.Tensor, box_size: int, step: float, first: tuple[float, float, float]
) -> torch.Tensor:
    """Fourier-crop a map onto any other regular grid.

    Voxel j of an axis is taken at input position first + j·step, by the trigonometric
    interpolation of the input restricted to the frequencies that both grids hold. With
    step = n / box_size this is the Fourier crop; other ratios and fractional shifts are as exact.
    Positions outside the input give zero.

    Parameters
    ----------
    map : Tensor (z, y, x)
        Axes may differ in length.
    box_size : int
        Voxels along each edge of the result.
    step : float
        New pixel size ÷ old pixel size.
    first : (float, float, float)
        Position (z, y, x) of the result's first voxel, in input voxels.

    Returns
    -------
    Tensor (z, y, x), float32
    """
    for axis in range(3):
        matrix = _interpolation(map.shape[axis], box_size, step, first[axis]).to(map.dtype)
        map = torch.tensordot(matrix, map, dims=([1], [axis])).movedim(0, axis)
    return map.contiguous()


def _interpolation(n_in: int, n_out: int, step: float, first: float) -> torch.Tensor:
    """Matrix (n_out, n_in) of the periodic sinc Σ_k w_k cos(2πk(x_j − i) / n_in) / n_in."""
    at = first + step * torch.arange(n_out, dtype=torch.float64)
    limit = n_in / 2 / max(step, 1.0)  # the highest frequency both grids hold
    turn = torch.arange(int(limit + 1e-6) + 1, dtype=torch.float64)
    weight = torch.where((turn == 0) | (2 * turn == n_in), 1.0, 2.0).double() / n_in
    turn = turn * 2 * torch.pi / n_in
    there, here = at[:, None] * turn, torch.arange(n_in)[:, None] * turn
    rows = (weight * there.cos()) @ here.cos().T + (weight * there.sin()) @ here.sin().T
    inside = (at > -0.5 - 1e-9) & (at < n_in - 0.5 + 1e-9)
    return rows * inside[:, None]
