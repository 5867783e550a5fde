"""Sources of a volume: a molecule written by code, an atomic model, a map.

Volumes are float32 tensors (z, y, x) with protein positive on a zero background; the molecule's
origin sits at index n // 2 of every axis.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import torch
from scipy.fft import next_fast_len
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from cryonb.base.files import existing
from cryonb.data import molecules
from cryonb.data.fetch import fetch, is_volume
from cryonb.data.maps import read_placed_map, resample
from cryonb.physics.fourier import filter_radially, fourier_crop

MOLECULES = {"channel": molecules.channel, "prestin": molecules.prestin}
MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
MAP_SUFFIXES = (".mrc", ".map", ".ccp4")
VOLT_A2 = 47.878  # h² / (2π m e): from scattering lengths per Å³ to volts
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
    centre: bool = True,
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
    centre : bool
        True: a model's centre of mass, or the middle of a map's grid, goes to index n // 2.
        False: the file's own frame, (0, 0, 0) Å at voxel (0, 0, 0); a deposited model and its map
        superpose in it.
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
    path = fetch(str(source)) if is_volume(str(source)) else Path(source)
    suffix = Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()
    if suffix not in MODEL_SUFFIXES + MAP_SUFFIXES:
        raise ValueError(
            f"Unknown source {str(source)!r}: give one of {', '.join(MOLECULES)}, or a file ending "
            f"in {', '.join(MODEL_SUFFIXES + MAP_SUFFIXES)} (also with .gz), or an entry such as "
            "EMD-8511 or 5U6O."
        )
    if suffix in MODEL_SUFFIXES:
        atoms = read_atoms(path, centre=centre)
        return from_atoms(atoms, box_size, pixel_size_A, centre=centre, solvent=solvent)
    grid, old_A, first_A = read_placed_map(path)
    step = pixel_size_A / old_A
    first = tuple(-x / old_A for x in first_A)
    if centre:
        first = tuple(n // 2 - box_size // 2 * step for n in grid.shape)
        _check_fits(_reach(grid) * old_A, box_size, pixel_size_A, path.name)
    return Volume(resample(grid, box_size, step, first), pixel_size_A, path.name.split(".")[0])


def read_atoms(path: str | os.PathLike, *, centre: bool = True) -> molecules.Atoms:
    """Read the first model of a PDB or mmCIF file.

    Waters, hydrogens and all but the first of alternative conformations are dropped. The
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
    structure.remove_alternative_conformations()
    sites = list(structure[0].all()) if len(structure) else []
    if not sites:
        raise ValueError(f"{path} lists no atoms: give a file with a model in it.")
    xyz = np.array([site.atom.pos.tolist() for site in sites])
    middle = np.average(xyz, axis=0, weights=[site.atom.element.weight for site in sites])
    spine = [i for i, site in enumerate(sites) if site.atom.name == "CA"]
    charged = np.array([sites[i].residue.name in CHARGED for i in spine], dtype=bool)
    return molecules.Atoms(
        xyz - middle if centre else xyz,
        np.array([site.atom.element.name for site in sites]),
        np.array([site.atom.b_iso for site in sites]),
        path.name.split(".")[0],
        _cyclic_symmetry(xyz - middle),
        _guess_membrane((xyz - middle)[spine, 2], charged) if centre else None,
    )


def from_atoms(
    atoms: molecules.Atoms,
    box_size: int = 64,
    pixel_size_A: float = 3.0,
    *,
    centre: bool = True,
    solvent: bool = False,
) -> Volume:
    """Electrostatic potential of atoms in volts, above that of vacuum or of the solvent.

    Each atom adds its electron scattering factor (five Gaussians) blurred by its B factor, on a
    grid of at most 1 Å. A common extra blur keeps that grid from aliasing and is divided out after
    the Fourier crop to the asked box. Source: Peng et al., Acta Cryst. A 52:257 (1996), by gemmi.

    With `centre`, coordinates (0, 0, 0) lie at index n // 2 and the molecule must fit the box in
    every orientation; otherwise they lie at voxel 0.

    With `solvent`, each atom displaces ice: a Gaussian of its volume, at the potential of vitreous
    ice, is subtracted (Fraser, MacRae and Suzuki, J. Appl. Cryst. 11:693, 1978; Vulović and others,
    J. Struct. Biol. 183:19, 2013). It halves the lowest frequencies of a protein, takes a third at
    6 Å and little at 3 Å. Hydrogens, which models lack, have 4.9 V, nearly that of the ice that
    they would displace (4.5 V).
    """
    edge_A = box_size * pixel_size_A
    fine = next_fast_len(int(np.ceil(edge_A / min(1.0, pixel_size_A / 2))), real=True)
    middle_A = box_size // 2 * pixel_size_A
    xyz_A = atoms.xyz_A + (middle_A if centre else 0.0)  # from the box's voxel 0
    if centre:
        reach_A = np.linalg.norm(atoms.xyz_A, axis=1).max()
        _check_fits(reach_A + ATOM_RADIUS_A, box_size, pixel_size_A, atoms.name)
    elif xyz_A.min() < 0 or xyz_A.max() > edge_A:
        raise ValueError(
            f"{atoms.name} lies at {xyz_A.min():.0f} to {xyz_A.max():.0f} Å, outside a box of 0 to "
            f"{edge_A:.0f} Å: use centre=True or a larger box."
        )
    density = gemmi.DensityCalculatorE()
    density.grid.set_unit_cell(gemmi.UnitCell(edge_A, edge_A, edge_A, 90, 90, 90))
    density.grid.spacegroup = gemmi.SpaceGroup("P 1")
    density.grid.set_size(fine, fine, fine)
    density.blur = max(0.0, 60 * (edge_A / fine) ** 2 - float(atoms.b_factor.min()))
    xyz_A = xyz_A - middle_A + fine // 2 * edge_A / fine  # the crop keeps middles, not first voxels
    for position, element, b in zip(xyz_A, atoms.element, atoms.b_factor, strict=True):
        atom = gemmi.Atom()
        atom.element, atom.b_iso, atom.pos = gemmi.Element(element), b, gemmi.Position(*position)
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
