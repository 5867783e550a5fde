"""Sources of a volume: a molecule written by code, an atomic model, a map.

Volumes are float32 tensors (z, y, x) with protein positive on a zero background; the molecule's
origin sits at index n // 2 of every axis.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import torch
from scipy.fft import next_fast_len
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import minimize
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from cryonb.base.files import existing
from cryonb.data import molecules
from cryonb.data.fetch import fetch, is_volume
from cryonb.data.maps import PlacedMap, onto_grid, read_placed_map
from cryonb.physics.fourier import filter_radially, fourier_crop

MOLECULES = {"channel": molecules.channel, "prestin": molecules.prestin}
MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
MAP_SUFFIXES = (".mrc", ".map", ".ccp4")
VOLT_A2 = 47.878  # h² / (2π m e): from scattering lengths per Å³ to volts
FINEST = 2048  # points a side of the grid on which atoms are laid: 32 GiB
ATOM_RADIUS_A = 4.0  # room for an atom at the molecule's rim
ICE_V = 4.53  # of vitreous ice, by the same sum over isolated atoms at 0.93 g/cm³: Vulović 2013
# Volume that an atom without its hydrogens displaces, Å³: Fraser, MacRae and Suzuki (1978)
DISPLACED_A3 = {"C": 16.44, "N": 2.49, "O": 9.13, "S": 19.86}
HYDROPHOBIC_A = 30.0  # thickness of a membrane's hydrophobic core
CHARGED = ("ASP", "GLU", "LYS", "ARG")


@dataclass(frozen=True)
class Volume:
    """A molecule on a grid.

    Attributes
    ----------
    map : Tensor (z, y, x), float32
        Electrostatic potential in volts (from atoms), or the file's own values (from a map).
    pixel_size_A : float
        Edge of a voxel in Å.
    name, symmetry : str
        What it is, and its point group about z ("C4"; "C1" when unknown).
    membrane_z_A : (float, float) or None
        Lower and upper face of the membrane's hydrophobic core in Å from the box centre, if known.
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
    first_A: tuple[float, float, float] | None = None,
    solvent: bool = False,
) -> Volume:
    """Load a molecule as a volume of the asked box and pixel size.

    Parameters
    ----------
    source : str or path
        "channel" or "prestin" (written by code), an atomic model (.pdb, .ent, .cif, .mmcif), or a
        map (.mrc, .map, .ccp4); files may be gzipped. Or an entry of EMDB or the PDB, "EMD-8511",
        "5U6O", see `cryonb.data.fetch.fetch`.
    box_size : int
        Voxels along each edge, even or odd.
    pixel_size_A : float
        Voxel edge in Å.
    first_A : (float, float, float), optional
        Where the first voxel lies in the file's own frame, (z, y, x) in Å: with one and the same
        place, a deposited model and its map superpose. None: a model's centre of mass, or the
        middle of a map's grid, goes to index n // 2.
    solvent : bool
        Of atoms: in vitreous ice instead of vacuum, see `from_atoms`.

    Raises
    ------
    FileNotFoundError
        No such file.
    OSError
        An entry that is not in the cache, and no network.
    ValueError
        An unknown source, a damaged or empty file, a molecule larger than the box.
    """
    if box_size < 1 or not pixel_size_A > 0:
        raise ValueError(f"A box of {box_size} px at {pixel_size_A} Å/px: give positive numbers.")
    if str(source) in MOLECULES:
        return from_atoms(MOLECULES[str(source)](), box_size, pixel_size_A, solvent=solvent)
    path = source_path(source)
    if is_model(path):
        atoms = read_atoms(path, centre=first_A is None)
        return from_atoms(atoms, box_size, pixel_size_A, first_A, solvent=solvent)
    given = read_placed_map(path)
    if given.map.max() == given.map.min():
        raise ValueError(f"{path} has the same value everywhere: give a map with a molecule in it")
    wider = max(given.map.shape) * given.pixel_size_A / (box_size * pixel_size_A)
    if first_A is None and wider > 1.001:
        reach_A = _reach(given.map) * given.pixel_size_A
        _check_fits(reach_A, box_size, pixel_size_A, path.name)
    map = onto_grid(given, box_size, pixel_size_A, first_A)
    return Volume(map, pixel_size_A, path.name.split(".")[0])


def source_path(source: str | os.PathLike) -> Path:
    """File of a model or a map, fetched if it is an entry; ValueError if it is neither."""
    path = fetch(str(source)) if is_volume(str(source)) else Path(source)
    if not is_model(path) and _suffix(path) not in MAP_SUFFIXES:
        raise ValueError(
            f"Unknown source {str(source)!r}: give one of {', '.join(MOLECULES)}, or a file ending "
            f"in {', '.join(MODEL_SUFFIXES + MAP_SUFFIXES)} (also with .gz), or an entry such as "
            "EMD-8511 or 5U6O."
        )
    return path


def is_model(path: str | os.PathLike) -> bool:
    """Whether a file's name is that of an atomic model, gzipped or not."""
    return _suffix(path) in MODEL_SUFFIXES


def _suffix(path: str | os.PathLike) -> str:
    return Path(str(path).lower().removesuffix(".gz")).suffix


def read_atoms(path: str | os.PathLike, *, centre: bool = True) -> molecules.Atoms:
    """Read the first model of a PDB or mmCIF file.

    Waters and hydrogens are dropped, alternative conformations count by their occupancies. The
    biological assembly is not expanded: the molecule is what the file lists. A cyclic symmetry
    about z is recognised. The membrane is guessed, its normal along z: the 30 Å slab with the
    smallest share of charged residues, if that is under 12 % (soluble proteins stay above).
    FileNotFoundError if there is no such file, ValueError if it is damaged or lists no atoms.
    """
    path = existing(path)
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a readable model ({error}): get it again.") from error
    structure.remove_hydrogens()
    structure.remove_waters()
    sites = list(structure[0].all()) if len(structure) else []
    occupancy = np.array([site.atom.occ for site in sites])
    if not occupancy.any():
        lack = "gives all of its atoms an occupancy of 0" if sites else "lists no atoms"
        raise ValueError(f"{path} {lack}: give a file with a model in it.")
    xyz = np.array([site.atom.pos.tolist() for site in sites])
    b_factor = np.array([site.atom.b_iso for site in sites])
    lost = ~(np.isfinite(xyz).all(1) & (np.abs(b_factor) < 1e5) & (occupancy >= 0))
    if lost.any():
        first = sites[int(lost.argmax())]
        raise ValueError(
            f"{path}: {lost.sum()} of {len(sites)} atoms have no sound position, B factor or "
            f"occupancy, the first in {first.residue} of chain {first.chain.name}: correct or "
            "delete them"
        )
    mass = occupancy * [site.atom.element.weight for site in sites]
    middle = np.average(xyz, axis=0, weights=mass)
    spine = [i for i, site in enumerate(sites) if site.atom.name == "CA"]
    charged = np.array([sites[i].residue.name in CHARGED for i in spine], dtype=bool)
    return molecules.Atoms(
        xyz - middle if centre else xyz,
        np.array([site.atom.element.name for site in sites]),
        b_factor,
        path.name.split(".")[0],
        _cyclic_symmetry(xyz - middle),
        _guess_membrane((xyz - middle)[spine, 2], charged) if centre else None,
        occupancy,
    )


def atoms_in_box(
    xyz_A: np.ndarray,
    shape: tuple[int, int, int],
    pixel_size_A: float,
    first_A: tuple[float, float, float],
    least: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (n, zyx) in voxels of a map's grid, and which of them lie in it.

    ValueError if that is less than a part `least` of them.
    """
    atoms = (np.asarray(xyz_A)[:, ::-1] - first_A) / pixel_size_A
    inside = ((atoms > -0.5) & (atoms < np.array(shape) - 0.5)).all(1)
    if inside.mean() < least:
        raise ValueError(
            f"Only {inside.mean():.0%} of the model's {len(atoms)} atoms lie in the map's box: "
            "give the model in the frame of the map and a map whose header says where it lies, "
            "or move the model (--centre, --fit)"
        )
    return atoms, inside


def fit_atoms(atoms: molecules.Atoms, given: PlacedMap) -> molecules.Atoms:
    """Turn and move a model as one body to where the map around its atoms is densest.

    The mean density at the atoms is maximised from where they lie, first in the map blurred by a
    Gaussian of 8 Å, then of 4 and 2 Å; a maximum that is farther away than about a helix is not
    found. As ChimeraX's fitmap, which does so without the blur.
    """
    few = atoms.xyz_A[:: 1 + len(atoms.xyz_A) // 3000]
    middle = few.mean(0)
    reach_A = max(float((few - middle).std()), 1.0)  # so that 1 is about 1 Å of turning, too

    def moved(xyz_A: np.ndarray, move: np.ndarray) -> np.ndarray:
        turn = Rotation.from_rotvec(move[:3] / reach_A)
        return turn.apply(xyz_A - middle) + middle + move[3:]

    def loss(move: np.ndarray, smooth: np.ndarray) -> float:
        at = (moved(few, move)[:, ::-1] - given.first_A) / given.pixel_size_A
        return -map_coordinates(smooth, at.T, order=1).mean()

    move = np.zeros(6)
    for blur_A in (8.0, 4.0, 2.0):
        smooth = gaussian_filter(given.map.numpy(), blur_A / given.pixel_size_A)
        smooth /= max(float(np.abs(smooth).max()), 1e-30)
        move = minimize(loss, move, smooth, method="Powell", options={"xtol": 0.01}).x
    return replace(atoms, xyz_A=moved(atoms.xyz_A, move))


def from_atoms(
    atoms: molecules.Atoms,
    box_size: int = 64,
    pixel_size_A: float = 3.0,
    first_A: tuple[float, float, float] | None = None,
    *,
    solvent: bool = False,
) -> Volume:
    """Electrostatic potential of atoms in volts, above that of vacuum or of the solvent.

    Each atom adds its electron scattering factor (five Gaussians) blurred by its B factor,
    times its occupancy, on a grid of at most 1 Å. A common extra blur keeps that grid from
    aliasing and is divided out after the Fourier crop to the asked box. Source: Peng et al.,
    Acta Cryst. A 52:257 (1996), by gemmi.

    Coordinates (0, 0, 0) lie at index n // 2 and the molecule must fit the box in every
    orientation; or voxel 0 lies at `first_A` (z, y, x), and a tenth of the atoms
    may lie outside and is left out.

    With `solvent`, each atom displaces ice: a Gaussian of its volume, at the potential of vitreous
    ice, is subtracted (Fraser, MacRae and Suzuki, J. Appl. Cryst. 11:693, 1978; Vulović and others,
    J. Struct. Biol. 183:19, 2013). It halves the lowest frequencies of a protein, takes a third at
    6 Å and little at 3 Å. Hydrogens, which models lack, have 4.9 V, nearly that of the ice that
    they would displace (4.5 V).
    """
    edge_A = box_size * pixel_size_A
    fine = next_fast_len(int(np.ceil(edge_A / min(1.0, pixel_size_A / 2))), real=True)
    if fine > FINEST:
        raise ValueError(
            f"A box of {edge_A:.0f} Å takes a grid of {fine} points a side, more than {FINEST}: "
            "ask for fewer or smaller pixels"
        )
    middle_A = box_size // 2 * pixel_size_A
    xyz_A, inside = atoms.xyz_A, slice(None)  # from the box's middle
    if first_A is None:
        reach_A = np.linalg.norm(xyz_A, axis=1).max()
        _check_fits(reach_A + ATOM_RADIUS_A, box_size, pixel_size_A, atoms.name)
    else:
        inside = atoms_in_box(xyz_A, (box_size,) * 3, pixel_size_A, first_A, least=0.9)[1]
        xyz_A = xyz_A[inside] - np.array(first_A)[::-1] - middle_A
    density = gemmi.DensityCalculatorE()
    density.grid.set_unit_cell(gemmi.UnitCell(edge_A, edge_A, edge_A, 90, 90, 90))
    density.grid.spacegroup = gemmi.SpaceGroup("P 1")
    density.grid.set_size(fine, fine, fine)
    density.blur = max(0.0, 60 * (edge_A / fine) ** 2 - float(atoms.b_factor.min()))
    xyz_A = xyz_A + fine // 2 * edge_A / fine  # the crop keeps middles, not first voxels
    occupancy = np.broadcast_to(atoms.occupancy, len(atoms.xyz_A))[inside]
    listed = zip(xyz_A, atoms.element[inside], atoms.b_factor[inside], occupancy, strict=True)
    for position, element, b, share in listed:
        atom = gemmi.Atom()
        atom.element, atom.b_iso, atom.occ = gemmi.Element(element), b, share
        atom.pos = gemmi.Position(*position)
        density.add_atom_density_to_grid(atom)
        if solvent:
            volume_A3 = DISPLACED_A3.get(element, DISPLACED_A3["C"])
            atom.b_iso = b + 4 * np.pi * volume_A3 ** (2 / 3)
            density.add_c_contribution_to_grid(atom, -ICE_V / VOLT_A2 * volume_A3)
    potential = torch.from_numpy(np.ascontiguousarray(density.grid.array.T)) * VOLT_A2  # (z, y, x)
    sharpen = density.blur / (4 * pixel_size_A**2)
    cropped = fourier_crop(potential, box_size)
    cropped = filter_radially(cropped, lambda f: torch.exp(sharpen * f**2))
    return Volume(cropped, pixel_size_A, atoms.name, atoms.symmetry, atoms.membrane_z_A)


def _check_fits(reach_A: float, box_size: int, pixel_size_A: float, name: str) -> None:
    """Refuse a box that cannot hold `reach_A` around its centre."""
    needed = 2 * int(np.ceil(reach_A / pixel_size_A)) + 2
    if box_size < needed - 1:
        raise ValueError(
            f"{name} reaches {reach_A:.0f} Å from its centre and does not fit a box of {box_size} "
            f"px at {pixel_size_A:g} Å/px: ask for box_size={needed} or a larger pixel size."
        )


def _reach(grid: torch.Tensor) -> float:
    """Voxels from the centre within which lie 99 % of a map's strong voxels."""
    few = grid.flatten()[:: 1 + grid.numel() // 10**6]
    strong = (grid > 0.3 * torch.quantile(few, 0.999)).nonzero()
    away = (strong - torch.tensor(grid.shape) // 2).double().norm(dim=1).numpy()
    return float(np.quantile(away, 0.99)) if len(away) else 0.0


def _cyclic_symmetry(xyz: np.ndarray) -> str:
    """Highest C_n about z (n ≤ 8) that brings atoms onto atoms within 1 Å."""
    tree = KDTree(xyz)
    if np.median(np.hypot(xyz[:, 0], xyz[:, 1])) < 2.0:  # a line along z has every symmetry
        return "C1"
    for n in range(8, 1, -1):
        turned = Rotation.from_euler("z", 360 / n, degrees=True).apply(xyz)
        if np.median(tree.query(turned)[0]) < 1.0:
            return f"C{n}"
    return "C1"


def _guess_membrane(z_A: np.ndarray, charged: np.ndarray) -> tuple[float, float] | None:
    """The slab with the fewest charged residues, see `read_atoms`; None where nothing is one."""
    half = HYDROPHOBIC_A / 2
    middles = np.arange(z_A.min() + half, z_A.max() - half, 1.0) if len(z_A) else []
    slabs = [np.abs(z_A - z) <= half for z in middles]
    shares = [charged[slab].mean() if slab.sum() >= 40 else 1.0 for slab in slabs]
    if not shares or min(shares) >= 0.12:
        return None
    z = float(middles[int(np.argmin(shares))])
    return z - half, z + half
