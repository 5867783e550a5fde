"""MRC and CCP4 maps on disk, and resampling a map to another grid."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mrcfile
import numpy as np
import torch

from cryonb.base.files import beside, existing

# What says where a map lies and whose it is.
KEPT_FIELDS = (
    "nxstart nystart nzstart mx my mz cella cellb mapc mapr maps ispg exttyp origin nlabl label"
).split()


def read_mrc(path: str | os.PathLike) -> tuple[np.ndarray, np.void, np.recarray]:
    """Data, header and voxel size of an MRC file (gzipped or not); ValueError if it is damaged."""
    path = existing(path)
    try:
        with mrcfile.open(path, permissive=False) as mrc:
            return np.array(mrc.data), mrc.header.copy(), mrc.voxel_size.copy()
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not a whole MRC file, damaged or cut short ({error}): get it again"
        ) from error


def read_map(path: str | os.PathLike) -> tuple[torch.Tensor, float]:
    """Read an MRC or CCP4 map (gzipped or not), its axes in the order (z, y, x).

    Returns
    -------
    map : Tensor (z, y, x), float32
    pixel_size_A : float

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Damaged, not a volume, voxels that are NaN, or that are not cubes.
    """
    return read_placed_map(path)[:2]


def read_placed_map(
    path: str | os.PathLike,
) -> tuple[torch.Tensor, float, tuple[float, float, float]]:
    """Read a map as `read_map` does, and where its first voxel lies: (z, y, x) in Å.

    The place is the header's ORIGIN, or NSTART voxels where ORIGIN is zero; both count along x, y
    and z, whatever order MAPC, MAPR and MAPS give to columns, rows and sections.
    """
    data, header, size = read_mrc(path)
    order = _axis_order(header)
    if data.ndim != 3 or np.iscomplexobj(data) or sorted(order) != [1, 2, 3]:
        raise ValueError(f"{path} holds {data.dtype} of shape {data.shape}: give a real 3D map.")
    if not np.isfinite(data).all():
        count = np.count_nonzero(~np.isfinite(data))
        raise ValueError(f"{path} has {count} NaN or infinite voxels: repair the map first.")
    voxel = [float(size[axis]) for axis in "zyx"]
    if max(voxel) == 0:
        raise ValueError(
            f"{path} has no pixel size, its header says 0 × 0 × 0 Å: write the cell's edges into it"
        )
    if min(voxel) <= 0 or max(voxel) - min(voxel) > 1e-3 * max(voxel):
        raise ValueError(
            f"{path} has voxels of {voxel[2]:g} × {voxel[1]:g} × {voxel[0]:g} Å (x, y, z), which "
            "are not cubes: correct the header, or resample the map to one pixel size."
        )
    to_zyx = [order.index(axis) for axis in (3, 2, 1)]
    start = np.array([int(header[name]) for name in ("nzstart", "nystart", "nxstart")])[to_zyx]
    origin = np.array([float(header["origin"][axis]) for axis in "zyx"])
    first_A = origin if origin.any() else start * voxel[0]
    grid = np.ascontiguousarray(data.transpose(to_zyx), dtype=np.float32)
    return torch.from_numpy(grid), voxel[0], tuple(first_A.tolist())


def _axis_order(header: np.void) -> list[int]:
    """Which of x, y, z (1, 2, 3) sections, rows and columns are; some programs leave them empty."""
    order = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    return order if any(order) else [3, 2, 1]


def check_one_cube(path: str | os.PathLike, map: torch.Tensor) -> None:
    """ValueError if the file of a map (z, y, x) is a stack of images, or its box is no cube."""
    with mrcfile.open(path, header_only=True) as mrc:
        stack = mrc.header.ispg == 0 and mrc.header.mz == 1 and mrc.header.nz > 1
    if stack or Path(path).suffix == ".mrcs":
        raise ValueError(f"{path} is a stack of {len(map)} images: give a map")
    if len(set(map.shape)) > 1:
        z, y, x = map.shape
        raise ValueError(f"{path} has {x} × {y} × {z} voxels: cut or pad the map to a cube")


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
        with beside(path) as part, mrcfile.new(part, overwrite=True) as mrc:
            mrc.set_data(np.ascontiguousarray(data, dtype=np.float32))
            yield mrc
    except OSError as error:
        raise OSError(
            f"could not write {path} ({error.strerror or error}): free some space or choose "
            "another folder"
        ) from error


def write_map_like(
    path: str | os.PathLike, map: torch.Tensor, like: str | os.PathLike, label: str = ""
) -> None:
    """Write a volume (z, y, x) as float32 with the header of another file of the same grid.

    Cell, place, order of axes, space group, extended header and labels are those of `like`;
    statistics are the new map's, and `label` becomes one label more where there is room.
    ValueError if the grids differ, OSError as in `write_map`.
    """
    with mrcfile.open(like, permissive=False) as mrc:
        header, extended = mrc.header.copy(), mrc.extended_header.copy()
        data = map.detach().cpu().numpy().transpose([3 - axis for axis in _axis_order(header)])
        if data.shape != mrc.data.shape:
            raise ValueError(f"A map of {data.shape} voxels has no place in {like}.")
    with _new_file(path, data) as mrc:
        mrc.set_extended_header(extended)
        for name in KEPT_FIELDS:
            mrc.header[name] = header[name]
        if label and mrc.header.nlabl < 10:
            mrc.header.label[mrc.header.nlabl] = label.encode()
            mrc.header.nlabl += 1


def level_and_scale(map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and standard deviation over the last three axes: solvent is most of a box."""
    flat = map.flatten(-3)
    level, scale = flat.median(-1).values, flat.std(-1)
    return level[..., None, None, None], scale.clamp_min(1e-20)[..., None, None, None]


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
