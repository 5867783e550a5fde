"""Molecules as atoms: two membrane proteins that come with the package, and ideal backbones.

The channel is C4 like HCN1, the dimer C2 like prestin; both were written by code, by
``python tools/make_molecules.py``. The folds are plausible, not real; the hand is real: L amino
acids, right-handed helices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

# Ideal backbones as screws: rise (Å) and turn (degrees) a residue, then radius (Å), angle (degrees)
# and height (Å) of N, CA and C. They follow from Engh-Huber bond lengths and angles with
# (phi, psi) = (-63, -42) for the helix and (-119, 125) for the strand.
IDEAL = {
    "H": (1.50, 100.0, ((1.53, -26.3, -0.91), (2.28, 0.0, 0.0), (1.71, 27.5, 1.05))),
    "E": (3.34, -172.6, ((0.49, 60.4, -1.22), (0.92, 0.0, 0.0), (0.51, 71.3, 1.24))),
}


@dataclass(frozen=True)
class Atoms:
    """A molecule as atoms, its symmetry axis along z through the origin.

    Attributes
    ----------
    xyz_A : ndarray (n, 3)
        Positions (x, y, z) in Å, centre of mass at z = 0.
    element : ndarray (n,) of str
        Chemical symbols.
    b_factor : ndarray (n,)
        Isotropic B factors in Å².
    name, symmetry : str
        What it is, and its point group ("C4", "C2", "C1").
    membrane_z_A : (float, float) or None
        Lower and upper face of the membrane's hydrophobic slab, in Å, if known.
    occupancy : ndarray (n,) or 1.0
        The share of the molecules that have the atom there.
    """

    xyz_A: np.ndarray
    element: np.ndarray
    b_factor: np.ndarray
    name: str
    symmetry: str = "C1"
    membrane_z_A: tuple[float, float] | None = None
    occupancy: np.ndarray | float = 1.0


def channel() -> Atoms:
    """Return a C4 ion channel like HCN1.

    Each subunit has an N-terminal domain, the voltage sensor S1-S4, the pore S5-S6 with its pore
    helix, a C-linker of six helices and a cyclic-nucleotide-binding domain around a beta roll.
    """
    return _repeated("channel", 4)


def prestin() -> Atoms:
    """Return a C2 dimer like prestin (SLC26A5).

    Each protomer has fourteen transmembrane helices in two inverted repeats of seven, and a
    cytosolic STAS domain, a beta sheet between helices.
    """
    return _repeated("prestin", 2)


def _repeated(name: str, n_fold: int) -> Atoms:
    """Read the subunit ``name.npz`` beside this file and repeat it about z."""
    with np.load(Path(__file__).with_name(f"{name}.npz")) as subunit:
        xyz_A, element, b_factor, membrane = (
            subunit[key] for key in ("xyz_A", "element", "b_factor", "membrane_z_A")
        )
    turns = Rotation.create_group(f"C{n_fold}").as_matrix()
    xyz_A = np.einsum("kij,nj->kni", turns, xyz_A).reshape(-1, 3)
    element, b_factor = np.tile(element, n_fold), np.tile(b_factor, n_fold).astype(float)
    return Atoms(xyz_A, element, b_factor, name, f"C{n_fold}", tuple(membrane.tolist()))


def ideal_backbone(kind: str, start: np.ndarray, end: np.ndarray, facing: np.ndarray) -> np.ndarray:
    """Ideal helix or strand (residue, 3, 3) along an axis, its first CA turned to `facing`."""
    rise, turn, atoms = IDEAL[kind]
    length = np.linalg.norm(end - start)
    axis = (end - start) / length
    e1 = unit(facing - axis * (facing @ axis))
    radius, angle, height = np.array(atoms).T
    step = np.arange(round(length / rise) + 1)[:, None]
    angle = np.radians(angle + turn * step)
    local = np.stack([radius * np.cos(angle), radius * np.sin(angle), height + rise * step], -1)
    return start + local @ np.stack([e1, np.cross(axis, e1), axis])


def with_o_and_cb(backbone: np.ndarray) -> np.ndarray:
    """N, CA, C, O, CB (residue, 5, 3): O trigonal at C, CB tetrahedral at CA, an L amino acid."""
    n, ca, c = backbone[:, 0], backbone[:, 1], backbone[:, 2]
    n_next = np.concatenate([n[1:], 2 * c[-1:] - ca[-1:] + [[0.0, 0.0, 0.5]]])
    o = c + 1.23 * unit(unit(c - ca) + unit(c - n_next))
    cb = ca + 0.93 * unit(unit(ca - n) + unit(ca - c)) - 1.21 * unit(np.cross(ca - n, c - ca))
    return np.stack([n, ca, c, o, cb], 1)


def unit(v: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) of length 1."""
    return v / np.linalg.norm(v, axis=-1, keepdims=True)
