"""Two membrane proteins written by code: a C4 channel like HCN1 and a C2 dimer like prestin.

Nothing is read from a file. A subunit is a table of helices and strands (start and end of each
axis, in Å); ideal backbones are laid along the axes, loops join them in order, side chains with the
sizes of real ones are added, and the symmetry makes the other subunits. The folds are plausible,
not real: good for learning and tests, meaningless for biology. Left-handed twins do not exist here:
the amino acids are L, the helices right-handed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Ideal backbones as screws: rise (Å) and turn (degrees) a residue, then radius (Å), angle (degrees)
# and height (Å) of N, CA, C and O. They follow from Engh-Huber bond lengths and angles with
# (phi, psi) = (-63, -42) for the helix and (-119, 125) for the strand.
IDEAL = {
    "H": (
        1.50,
        100.0,
        ((1.53, -26.3, -0.91), (2.28, 0.0, 0.0), (1.71, 27.5, 1.05), (2.04, 22.6, 2.23)),
    ),
    "E": (
        3.34,
        -172.6,
        ((0.49, 60.4, -1.22), (0.92, 0.0, 0.0), (0.51, 71.3, 1.24), (1.68, 93.4, 1.38)),
    ),
}

# Side chains beyond CB: (element, parent, torsion in degrees); parent 0 is CB, 1 the next atom, ...
SIDE_CHAINS = {
    "A": (),
    "S": (("O", 0, -60),),
    "V": (("C", 0, 180), ("C", 0, -60)),
    "L": (("C", 0, -60), ("C", 1, 180), ("C", 1, 60)),
    "I": (("C", 0, -60), ("C", 0, 180), ("C", 1, 180)),
    "M": (("C", 0, -60), ("S", 1, 180), ("C", 2, 180)),
    "E": (("C", 0, -60), ("C", 1, 180), ("O", 2, 0), ("O", 2, 180)),
    "N": (("C", 0, -60), ("O", 1, -20), ("N", 1, 160)),
    "K": (("C", 0, -60), ("C", 1, 180), ("C", 2, 180), ("N", 3, 180)),
    "F": (("C", 0, -60), ("C", 1, 90), ("C", 1, -90), ("C", 2, 180), ("C", 3, 180), ("C", 4, 0)),
}
FREQUENCIES = {"A": 16, "S": 13, "V": 12, "L": 17, "I": 8, "M": 3, "E": 9, "N": 7, "K": 8, "F": 7}


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
    """

    xyz_A: np.ndarray
    element: np.ndarray
    b_factor: np.ndarray
    name: str
    symmetry: str = "C1"
    membrane_z_A: tuple[float, float] | None = None


# One subunit of the channel, in chain order: (kind, axis start, axis end), in Å; pore along z.
CHANNEL = (
    ("H", (30, -10, 8), (43, 3, 9)),  # N-terminal domain
    ("H", (44, 13, 8), (32, 24, 8)),
    ("H", (40, 20, 17), (41, 18, 56)),  # S1
    ("H", (42, 8, 56), (41, 8, 17)),  # S2
    ("H", (31, 22, 19), (31, 21, 54)),  # S3
    ("H", (29, 11, 56), (31, 12, 12)),  # S4
    ("H", (22, 4, 17), (20, -8, 56)),  # S5
    ("H", (18, 4, 52), (10, 4, 41)),  # pore helix
    ("H", (13, -4, 56), (8, 3, 16)),  # S6
    ("H", (12, 10, 9), (29, 17, 7)),  # C-linker
    ("H", (30, 8, 3), (15, 4, 0)),
    ("H", (18, -6, -3), (32, -8, -3)),
    ("H", (36, 2, -4), (34, 15, -6)),
    ("H", (26, 12, -8), (14, 10, -9)),
    ("H", (18, 0, -14), (33, 0, -13)),  # nucleotide-binding domain
    ("E", (17, -6, -22), (17, 2, -42)),
    ("E", (22, 2, -43), (22, -5, -21)),
    ("E", (27, -4, -20), (27, 1, -43)),
    ("E", (32, 0, -42), (32, -2, -21)),
    ("E", (32, 11, -21), (32, 5, -42)),
    ("E", (27, 6, -43), (27, 11, -20)),
    ("E", (22, 10, -21), (22, 8, -43)),
    ("E", (17, 8, -42), (17, 8, -22)),
    ("H", (13, -6, -46), (29, -5, -52)),
    ("H", (32, 6, -53), (16, 8, -53)),
)

PRESTIN = (("H", (10, 0, 40), (12, 5, 10)),)


def channel() -> Atoms:
    """Build a C4 ion channel like HCN1: six transmembrane helices, pore, C-linker, beta roll."""
    return _assemble(CHANNEL, 4, "channel", membrane_z_A=(21.0, 53.0), seed=1)


def prestin() -> Atoms:
    """Build a C2 dimer like prestin (SLC26): fourteen transmembrane helices and a STAS domain."""
    return _assemble(PRESTIN, 2, "prestin", membrane_z_A=(10.0, 40.0), seed=2)


def _assemble(table, n_fold: int, name: str, membrane_z_A: tuple[float, float], seed: int) -> Atoms:
    """Build one subunit, repeat it about z, and centre the whole along z."""
    backbone, is_loop = _trace(table)
    xyz, element, residue = _side_chains(backbone, np.random.default_rng(seed))
    angle = 2 * np.pi * np.arange(n_fold) / n_fold
    cos, sin, zero, one = np.cos(angle), np.sin(angle), 0 * angle, 0 * angle + 1
    turn = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], -1).reshape(-1, 3, 3)
    mass = np.array([{"C": 12.0, "N": 14.0, "O": 16.0, "S": 32.1}[e] for e in element])
    z0 = np.average(xyz[:, 2], weights=mass)
    xyz = xyz - [0.0, 0.0, z0]
    b_factor = 30 + 0.012 * (xyz**2).sum(1) + 20 * is_loop[residue]
    copies = np.einsum("kij,nj->kni", turn, xyz).reshape(-1, 3)
    membrane = (membrane_z_A[0] - z0, membrane_z_A[1] - z0)
    return Atoms(
        copies, np.tile(element, n_fold), np.tile(b_factor, n_fold), name, f"C{n_fold}", membrane
    )


def _trace(table) -> tuple[np.ndarray, np.ndarray]:
    """Backbone (residue, 4, 3) of a subunit and whether each residue lies in a loop."""
    pieces, loops = [], []
    strands = np.array([np.add(s, e) / 2 for kind, s, e in table if kind == "E"]).reshape(-1, 3)
    for i, (kind, start, end) in enumerate(table):
        start, end = np.asarray(start, float), np.asarray(end, float)
        outward = start - strands.mean(0) if kind == "E" else np.array([np.cos(i), np.sin(i), 0.3])
        if i:
            loop = _loop(pieces[-1], start, end - start)
            pieces.append(loop)
            loops += [True] * len(loop)
        pieces.append(_element(kind, start, end, outward))
        loops += [False] * len(pieces[-1])
    return np.concatenate(pieces), np.array(loops)


def _element(kind: str, start: np.ndarray, end: np.ndarray, outward: np.ndarray) -> np.ndarray:
    """Ideal backbone (residue, 4, 3) along an axis, its first CA towards `outward`."""
    rise, turn, atoms = IDEAL[kind]
    length = np.linalg.norm(end - start)
    axis = (end - start) / length
    e1 = outward - axis * (outward @ axis)
    e1 /= np.linalg.norm(e1)
    frame = np.stack([e1, np.cross(axis, e1), axis])
    radius, angle, height = np.array(atoms).T
    step = np.arange(round(length / rise) + 1)[:, None]
    angle = np.radians(angle + turn * step)
    local = np.stack([radius * np.cos(angle), radius * np.sin(angle), height + rise * step], -1)
    return start + local @ frame


def _loop(previous: np.ndarray, start: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Backbone (residue, 4, 3) of a smooth curve from one element's end to the next one's start."""
    leave = previous[-3:].mean((0, 1)) - previous[-6:-3].mean((0, 1))
    p0, p1 = previous[-1, 1], start
    chord = np.linalg.norm(p1 - p0)
    m0, m1 = (v / np.linalg.norm(v) * (chord + 4.0) for v in (leave, direction))
    t = np.linspace(0, 1, 200)[:, None]
    curve = (2 * t**3 - 3 * t**2 + 1) * p0 + (t**3 - 2 * t**2 + t) * m0
    curve += (3 * t**2 - 2 * t**3) * p1 + (t**3 - t**2) * m1
    arc = np.append(0, np.linalg.norm(np.diff(curve, axis=0), axis=1).cumsum())
    n = max(int(round(arc[-1] / 3.5)) - 1, 1)
    at = np.linspace(0, arc[-1], 3 * n + 4)  # N, CA, C of n residues, without both ends
    path = np.stack([np.interp(at, arc, c) for c in curve.T], -1)[2:-2].reshape(n, 3, 3)
    side = np.cross(path[:, 2] - path[:, 0], [0.36, 0.48, 0.8])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    flip = np.where(np.arange(n) % 2, 1.0, -1.0)[:, None] * side
    path[:, 1] += 0.7 * flip
    carbonyl = path[:, 2] - 1.23 * flip
    return np.concatenate([path, carbonyl[:, None]], 1)


def _side_chains(backbone: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All atoms of a subunit: positions (n, 3), elements (n,), residue index (n,)."""
    letters, weights = np.array(list(FREQUENCIES)), np.array(list(FREQUENCIES.values()), float)
    sequence = rng.choice(letters, len(backbone), p=weights / weights.sum())
    xyz, element, residue = [], [], []
    for i, (letter, (n, ca, c, o)) in enumerate(zip(sequence, backbone, strict=True)):
        b, a = ca - n, c - ca
        cb = ca - 0.5827 * np.cross(b, a) + 0.5680 * b - 0.5407 * a  # L amino acids
        atoms = [cb]
        for _, parent, torsion in SIDE_CHAINS[letter]:
            before = ca if parent == 0 else atoms[_parent_of(letter, parent)]
            root = n if parent == 0 else ca if _parent_of(letter, parent) == 0 else atoms[0]
            atoms.append(_bond(root, before, atoms[parent], torsion))
        xyz += [n, ca, c, o, *atoms]
        element += ["N", "C", "C", "O", "C"] + [s[0] for s in SIDE_CHAINS[letter]]
        residue += [i] * (4 + len(atoms))
    return np.array(xyz), np.array(element), np.array(residue)


def _parent_of(letter: str, atom: int) -> int:
    return SIDE_CHAINS[letter][atom - 1][1]


def _bond(a, b, c, torsion: float, length: float = 1.5, angle: float = 113.0) -> np.ndarray:
    """Position of d, bonded to c, from the torsion a-b-c-d in degrees."""
    angle, torsion = np.radians(angle), np.radians(torsion)
    bc = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, bc)
    normal /= np.linalg.norm(normal)
    along = np.cos(torsion) * np.cross(normal, bc) + np.sin(torsion) * normal
    return c + length * (np.sin(angle) * along - np.cos(angle) * bc)
