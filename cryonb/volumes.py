"""Sources of a volume: a molecule written by code, a PDB or mmCIF file, an MRC or CCP4 map.

Volumes are float32 tensors (z, y, x) with protein positive on a zero background; the molecule's
origin sits at index n // 2 of every axis.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu

from cryonb import molecules
from cryonb.fourier import filter_radially, fourier_crop

MOLECULES = {"channel": molecules.channel, "prestin": molecules.prestin}
MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
MAP_SUFFIXES = (".mrc", ".map", ".ccp4")
VOLT_A2 = 47.878  # h²/(2π m e): turns scattering lengths per Å³ (Å⁻²) into volts
MARGIN_A = 4.0  # room for the outermost atoms' own size


@dataclass(frozen=True)
class Volume:
    """A molecule on a grid.

    Attributes
    ----------
    map : Tensor (z, y, x), float32
        Electrostatic potential in volts (from atoms) or the file's own values (from a map).
    pixel_size_A : float
        Edge of a voxel in Å.
    name, symmetry : str
        What it is, and its point group about z ("C4", ...; "C1" when unknown).
    membrane_z_A : (float, float) or None
        Lower and upper face of the hydrophobic slab in Å from the box centre, if known.
    """

    map: torch.Tensor
    pixel_size_A: float
    name: str
    symmetry: str = "C1"
    membrane_z_A: tuple[float, float] | None = None


def load_volume(
    source: str | os.PathLike,
    box_size: int = 64,
    pixel_size_A: float = 3.0,
    *,
    centre: bool = True,
) -> Volume:
    """Load a molecule as a volume of the asked box and pixel size.

    Parameters
    ----------
    source : str or path
        "channel" or "prestin" (written by code), an atomic model (.pdb, .ent, .cif, .mmcif) or a
        map (.mrc, .map, .ccp4), each possibly gzipped.
    box_size : int
        Voxels along each edge, even or odd.
    pixel_size_A : float
        Voxel edge in Å.
    centre : bool
        True: a model's centre of mass, or the middle of a map's grid, goes to index n // 2.
        False: the file's own frame is kept, (0, 0, 0) Å at voxel (0, 0, 0), in which a deposited
        model and its map superpose.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        An unknown source, a damaged or empty file, or a molecule larger than the box.
    """
    if str(source) in MOLECULES:
        return from_atoms(MOLECULES[str(source)](), box_size, pixel_size_A)
    path = Path(source)
    suffix = Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix not in MODEL_SUFFIXES + MAP_SUFFIXES:
        raise ValueError(
            f"Unknown source {str(source)!r}: give one of {', '.join(MOLECULES)}, or a file ending "
            f"in {', '.join(MODEL_SUFFIXES + MAP_SUFFIXES)} (.gz is fine)."
        )
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}: check the path, or use source='channel'.")
    if suffix in MODEL_SUFFIXES:
        return from_atoms(read_atoms(path, centre=centre), box_size, pixel_size_A, centre=centre)
    grid, pixel, origin_A = _read_grid(path)
    if centre:
        _check_map_fits(grid, pixel, box_size * pixel_size_A, pixel_size_A, path)
        first = [n // 2 - box_size // 2 * pixel_size_A / pixel for n in grid.shape]
    else:
        first = [-o / pixel for o in origin_A]
    for axis, x0 in enumerate(first):
        matrix = _resampling_matrix(grid.shape[axis], box_size, pixel_size_A / pixel, x0)
        grid = torch.tensordot(matrix.float(), grid, dims=([1], [axis])).movedim(0, axis)
    return Volume(grid.contiguous(), pixel_size_A, Path(path.stem).stem)


def read_map(path: str | os.PathLike) -> tuple[torch.Tensor, float]:
    """Read an MRC or CCP4 map, its axes put into the order (z, y, x) whatever the file's own.

    Returns
    -------
    map : Tensor (z, y, x), float32
    pixel_size_A : float

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; damaged, empty, not finite, not a volume, or voxels that are not cubes.
    """
    grid, pixel_size_A, _ = _read_grid(Path(path))
    return grid, pixel_size_A


def _read_grid(path: Path) -> tuple[torch.Tensor, float, tuple[float, float, float]]:
    """Map (z, y, x), pixel size, and position (z, y, x) in Å of voxel 0."""
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}: check the path.")
    try:
        with mrcfile.open(path, permissive=False) as mrc:
            header, data = mrc.header, np.array(mrc.data)
            voxel = [float(mrc.voxel_size[a]) for a in "zyx"]
            shifts = [float(header.origin[a]) for a in "zyx"]
            starts = [int(header.nzstart), int(header.nystart), int(header.nxstart)]
            order = [int(header.maps), int(header.mapr), int(header.mapc)]
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole MRC map ({error}): fetch it again.") from error
    if data.ndim != 3 or np.iscomplexobj(data) or sorted(order) != [1, 2, 3]:
        raise ValueError(f"{path} holds no 3D map but {data.dtype} of shape {data.shape}.")
    if not np.isfinite(data).all():
        bad = int((~np.isfinite(data)).sum())
        raise ValueError(f"{path} has {bad} voxels that are NaN or infinite: repair the map first.")
    pixel = voxel[0]
    if pixel <= 0 or max(voxel) - min(voxel) > 1e-3 * pixel:
        raise ValueError(
            f"{path} has voxels of {voxel[2]:g} × {voxel[1]:g} × {voxel[0]:g} Å (x, y, z), which "
            "are not cubes: resample the map to one pixel size, or correct its header."
        )
    to_zyx = [order.index(axis) for axis in (3, 2, 1)]
    starts = [starts[i] for i in to_zyx]
    origin_A = shifts if any(shifts) else [s * pixel for s in starts]
    grid = torch.from_numpy(np.ascontiguousarray(data.transpose(to_zyx), dtype=np.float32))
    return grid, pixel, tuple(origin_A)


def write_map(path: str | os.PathLike, map: torch.Tensor, pixel_size_A: float) -> None:
    """Write a volume (z, y, x) as a float32 MRC map: beside first, then renamed.

    Raises
    ------
    OSError
        The disk is full or not writable; nothing half-written stays behind.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with mrcfile.new(beside, overwrite=True) as mrc:
            mrc.set_data(np.ascontiguousarray(map.detach().cpu().numpy(), dtype=np.float32))
            mrc.set_volume()
            mrc.voxel_size = pixel_size_A
        os.replace(beside, path)
    except OSError as error:
        raise OSError(
            f"Could not write {path} ({error.strerror or error}): make room or choose another folder."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _resampling_matrix(n_in: int, n_out: int, step: float, first: float) -> torch.Tensor:
    """Matrix (n_out, n_in) that Fourier-crops one axis onto any other regular grid.

    Row j is the periodic sinc interpolation at input position first + j·step, restricted to the
    frequencies both grids hold: for step = n_in / n_out it is the Fourier crop itself, and other
    pixel sizes and fractional shifts are as exact. Positions outside the input give zero.
    """
    at = first + step * torch.arange(n_out, dtype=torch.float64)
    limit = n_in / 2 / max(step, 1.0)  # highest frequency index both grids hold
    k = torch.arange(int(limit + 1e-6) + 1, dtype=torch.float64)
    weight = torch.full_like(k, 2.0 / n_in)
    weight[(k == 0) | (2 * k == n_in)] = 1.0 / n_in  # these are their own mirror image
    turn = 2 * torch.pi * k / n_in
    there, here = at[:, None] * turn, torch.arange(n_in)[:, None] * turn
    rows = (weight * there.cos()) @ here.cos().T + (weight * there.sin()) @ here.sin().T
    inside = (at > -0.5 - 1e-9) & (at < n_in - 0.5 + 1e-9)
    return rows * inside[:, None]


def _check_map_fits(
    grid: torch.Tensor, pixel: float, edge_A: float, pixel_size_A: float, path: Path
) -> None:
    """Refuse a box that would cut off strong voxels of a map."""
    strong = torch.nonzero(
        grid > 0.3 * torch.quantile(grid.flatten()[:: 1 + grid.numel() // 10**6], 0.999)
    )
    reach = (strong - torch.tensor(grid.shape) // 2).abs().amax(1).double().quantile(0.99) * pixel
    if reach > edge_A / 2:
        needed = 2 * int(np.ceil(float(reach) / pixel_size_A)) + 2
        raise ValueError(
            f"{path} has density {reach:.0f} Å from its centre, outside a box of {edge_A:.0f} Å: ask "
            f"for box_size={needed} or a larger pixel size."
        )


def read_atoms(path: str | os.PathLike, *, centre: bool = True) -> molecules.Atoms:
    """Read the first model of a PDB or mmCIF file.

    Waters and hydrogens are dropped, alternative positions weighted by occupancy are kept as they
    are, and the biological assembly is not expanded: what the file lists is what you get.
    """
    path = Path(path)
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable PDB or mmCIF file ({error}).") from error
    structure.remove_hydrogens()
    structure.remove_waters()
    atoms = [site.atom for site in structure[0].all()] if len(structure) else []
    if not atoms:
        raise ValueError(f"{path} lists no atoms: give a file with a model in it.")
    xyz = np.array([atom.pos.tolist() for atom in atoms])
    if centre:
        xyz -= np.average(xyz, axis=0, weights=[atom.element.weight for atom in atoms])
    element = np.array([atom.element.name for atom in atoms])
    return molecules.Atoms(xyz, element, np.array([atom.b_iso for atom in atoms]), path.stem)


def from_atoms(
    atoms: molecules.Atoms, box_size: int = 64, pixel_size_A: float = 3.0, *, centre: bool = True
) -> Volume:
    """Electrostatic potential of atoms, in volts, from electron scattering factors.

    Each atom adds its five-Gaussian electron scattering factor, blurred by its B factor, on a grid
    of at most 1 Å; a common extra blur keeps that grid from aliasing and is taken out again after
    the Fourier crop to the asked box. Source: Peng, Acta Cryst. A 52:257, 1996, via gemmi.
    """
    edge_A = box_size * pixel_size_A
    if centre:
        _check_fits(np.linalg.norm(atoms.xyz_A, axis=1).max(), box_size, pixel_size_A, atoms.name)
    fine = _friendly(edge_A / min(1.0, pixel_size_A / 2))
    blur = max(0.0, 60 * (edge_A / fine) ** 2 - float(atoms.b_factor.min()))
    origin_A = fine // 2 * edge_A / fine if centre else 0.0
    density = gemmi.DensityCalculatorE()
    density.grid.set_unit_cell(gemmi.UnitCell(edge_A, edge_A, edge_A, 90, 90, 90))
    density.grid.spacegroup = gemmi.SpaceGroup("P 1")
    density.grid.set_size(fine, fine, fine)
    density.blur = blur
    for (x, y, z), element, b in zip(
        atoms.xyz_A + origin_A, atoms.element, atoms.b_factor, strict=True
    ):
        atom = gemmi.Atom()
        atom.element, atom.b_iso, atom.occ = gemmi.Element(str(element)), float(b), 1.0
        atom.pos = gemmi.Position(x, y, z)
        density.add_atom_density_to_grid(atom)
    potential = torch.from_numpy(np.array(density.grid.array.T)) * VOLT_A2  # (z, y, x)
    sharpen = lambda f: torch.exp(blur / 4 * (f / pixel_size_A) ** 2)  # noqa: E731
    cropped = filter_radially(fourier_crop(potential, box_size), sharpen)
    return Volume(cropped, pixel_size_A, atoms.name, atoms.symmetry, atoms.membrane_z_A)


def _friendly(size: float) -> int:
    """Smallest size ≥ `size` that an FFT likes."""
    from scipy.fft import next_fast_len

    return next_fast_len(int(np.ceil(size)), real=True)


def _check_fits(radius_A: float, box_size: int, pixel_size_A: float, name: str) -> None:
    """Refuse a box in which the molecule would be cut at some orientation."""
    needed = 2 * int(np.ceil((radius_A + MARGIN_A) / pixel_size_A)) + 2
    if box_size < needed:
        raise ValueError(
            f"{name} reaches {radius_A:.0f} Å from its centre and does not fit a box of {box_size} "
            f"px at {pixel_size_A:g} Å/px: ask for box_size={needed} or a larger pixel size."
        )


def soft_mask(
    map: torch.Tensor,
    pixel_size_A: float,
    *,
    low_pass_A: float = 15.0,
    threshold: float | None = None,
    extend_A: float = 3.0,
    soft_edge_A: float = 9.0,
) -> torch.Tensor:
    """Mask of the molecule, 1 inside and 0 outside, with a cosine edge.

    The map is low-passed, thresholded, grown by `extend_A`, and its edge falls as
    (1 + cos(π d / soft_edge_A)) / 2 with the distance d from the grown surface.

    Parameters
    ----------
    map : Tensor (z, y, x)
    threshold : float or None
        In units of the low-passed map; None separates it into two classes (Otsu, 1979).

    Raises
    ------
    ValueError
        No voxel lies above the threshold.
    """
    smooth = _gaussian_low_pass(map, low_pass_A / pixel_size_A)
    level = threshold_otsu(smooth) if threshold is None else threshold
    if not (smooth > level).any():
        raise ValueError(
            f"Nothing in the low-passed map exceeds {level:.3g} (its maximum is "
            f"{smooth.max():.3g}): lower the threshold."
        )
    away = ndimage.distance_transform_edt(smooth <= level) * pixel_size_A - extend_A
    edge = np.clip(away / max(soft_edge_A, 1e-6), 0, 1)
    return torch.from_numpy((0.5 + 0.5 * np.cos(np.pi * edge)).astype(np.float32))


def _gaussian_low_pass(map: torch.Tensor, resolution_px: float) -> np.ndarray:
    """Gaussian blur that leaves a tenth of the amplitude at 1 / resolution."""
    sigma = resolution_px * np.sqrt(2 * np.log(10)) / (2 * np.pi)
    return ndimage.gaussian_filter(map.detach().cpu().double().numpy(), sigma, mode="constant")


def micelle(
    volume: Volume,
    *,
    membrane_z_A: tuple[float, float] | None = None,
    width_A: float = 26.0,
    shell_A: float = 9.0,
    head_level: float = 0.8,
    core_level: float = -0.1,
) -> torch.Tensor:
    """Detergent belt around the transmembrane region, the molecule itself left out.

    Around the outline of the transmembrane slab, at lateral distance s from it and height z from
    the membrane's middle, the belt fills (s / width)² + (z / height)² < 1: head groups in the
    outer shell, alkyl chains inside.

    Parameters
    ----------
    volume : Volume
        Membrane normal along z.
    membrane_z_A : (float, float) or None
        Hydrophobic slab in Å from the box centre; None takes the volume's own, and where it has
        none, guesses the 30 Å slab with the widest cross-section.
    width_A : float
        Lateral reach of the belt from the protein, Å.
    shell_A : float
        Thickness of the head-group shell, Å.
    head_level, core_level : float
        Density relative to the molecule's mean: head groups near protein, alkyl chains near or
        under solvent.

    Returns
    -------
    Tensor (z, y, x), float32
        To be added to the map.
    """
    pixel, n = volume.pixel_size_A, volume.map.shape[-1]
    body = soft_mask(volume.map, pixel, low_pass_A=10, extend_A=0, soft_edge_A=6).numpy()
    solid = np.stack([ndimage.binary_fill_holes(layer > 0.5) for layer in body])  # no pore
    z_A = (np.arange(n) - n // 2) * pixel
    low, high = membrane_z_A or volume.membrane_z_A or _widest_slab(solid, z_A)
    slab = solid[(z_A >= low) & (z_A <= high)].mean(0) > 0.4
    lateral = ndimage.distance_transform_edt(~slab) * pixel  # (y, x)
    lateral = ndimage.gaussian_filter(lateral, 4.0 / pixel)
    height = (high - low) / 2 + shell_A
    rho = np.hypot(lateral / width_A, ((z_A - (low + high) / 2) / height)[:, None, None])
    mean_radius = (width_A + height) / 2
    outer = _ramp((1 - rho) * mean_radius / 4.0)
    inner = _ramp((1 - rho) * mean_radius / 4.0 - shell_A / 4.0)
    belt = head_level * (outer - inner) + core_level * inner
    level = float(volume.map[torch.from_numpy(body > 0.5)].mean())
    outside = 1 - ndimage.gaussian_filter(np.maximum(solid, body > 0.5).astype(float), 2.0 / pixel)
    return torch.from_numpy((level * belt * outside).astype(np.float32))


def _ramp(x: np.ndarray) -> np.ndarray:
    """Cosine step from 0 at -1/2 to 1 at 1/2."""
    return 0.5 + 0.5 * np.sin(np.pi * np.clip(x, -0.5, 0.5))


def _widest_slab(solid: np.ndarray, z_A: np.ndarray) -> tuple[float, float]:
    """The 30 Å slab along z in which the molecule is widest."""
    area = np.array([solid[np.abs(z_A - z) <= 15].mean() for z in z_A])
    z = float(z_A[area.argmax()])
    return z - 15.0, z + 15.0
