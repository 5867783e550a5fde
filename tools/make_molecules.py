"""Write the subunits of the two molecules that come with the package.

    python tools/make_molecules.py

writes ``cryonb/data/channel.npz`` and ``prestin.npz``. A subunit is a table of helices and strands
(start and end of each axis, in Å); ideal backbones are laid along the axes, loops join them in
order, and side chains with the sizes of real ones are added, with room for the other subunits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from cryonb.data import molecules
from cryonb.data.molecules import ideal_backbone, unit, with_o_and_cb

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
FREQUENCIES = {"A": 10, "S": 11, "V": 11, "L": 18, "I": 8, "M": 4, "E": 11, "N": 9, "K": 9, "F": 9}
ROTAMERS = (0, 120, 240)
AXIS = np.stack([np.zeros(201), np.zeros(201), np.arange(-100.0, 101.0)], 1)  # kept free


# One subunit of the channel, in chain order: (kind, axis start, axis end), in Å; pore along z.
CHANNEL = (
    ("H", (21.6, -12.7, 12.6), (37.1, -3.6, 13.5)),  # N-terminal domain
    ("H", (42.8, -1.4, 4), (40.5, 17.9, 4.7)),
    ("H", (41.8, 27.5, 2.4), (25.8, 30.3, 5.2)),
    ("H", (30.2, 27.3, 15.1), (35, 22.3, 55)),  # S1
    ("H", (38, 13.3, 55), (36.3, 14.3, 13)),  # S2
    ("H", (24.7, 18.5, 17.6), (24.9, 19.2, 50.6)),  # S3
    ("H", (26.7, 9.4, 52.7), (28.5, 9.1, 6.2)),  # S4, the voltage sensor
    ("H", (32.5, 1.3, 4.3), (23.7, -4.2, 5.9)),  # S4-S5 linker
    ("H", (21.3, 2.4, 12), (20.5, -7.9, 54.3)),  # S5
    ("H", (22.3, 2.6, 56.8), (6.4, 0, 48.9)),  # pore helix
    ("H", (10.2, -9.7, 49.9), (6.5, 2.7, 3.7)),  # S6, lines the pore
    ("H", (6.2, 11.5, 6.3), (30, 20.3, 5.4)),  # C-linker A'
    ("H", (32, 14.4, -1.9), (12.2, 7.5, -3.3)),  # B'
    ("H", (8.2, -1.6, -3.7), (25, -11.2, -2)),  # C'
    ("H", (32.9, -8.8, -4.8), (37.1, 7.2, -4.9)),  # D'
    ("H", (32.5, 14.1, -11.5), (16.6, 18.3, -12.3)),  # E'
    ("H", (13.1, 9.9, -12.7), (9.4, -3, -14.1)),  # F'
    ("H", (16.3, -6.8, -12.3), (35.4, -3.5, -14.7)),  # nucleotide-binding domain: A
    ("E", (33, -8.4, -24.5), (33, 0.7, -42.3)),  # beta roll, first sheet
    ("E", (28.2, -2.2, -43.3), (28.2, -5.4, -23.5)),
    ("E", (23.3, -2.3, -23.5), (23.5, -5.3, -43.3)),
    ("E", (18.6, -8.3, -42.3), (18.5, 0.7, -24.4)),
    ("E", (18.6, 7.4, -23.5), (18.6, 5, -43.4)),  # second sheet
    ("E", (23.4, 8.1, -43.3), (23.5, 4.3, -23.6)),
    ("E", (28.3, 1.4, -24.6), (28.2, 11, -42.2)),
    ("E", (32.9, 13.6, -40.3), (33.2, -1.1, -26.6)),
    ("H", (45.2, 1.4, -38.4), (34.9, 9.6, -48.4)),  # P
    ("H", (24.8, 12.9, -53.2), (17.5, -6.8, -53.7)),  # B
    ("H", (8.3, -4.3, -52.8), (8.6, 0.8, -23.2)),  # C
)

PRESTIN = (
    ("H", (35.5, 29.3, -35.8), (32.4, 11.6, -34.1)),  # N-terminal domain
    ("H", (34.8, 5.9, -24.8), (19.6, 10.7, -20.6)),
    ("H", (9.3, 7.9, -14.5), (12.5, 15.3, 17.5)),  # TM1
    ("H", (4, 22.5, 16.8), (10.4, 19, -13.8)),  # TM2
    ("H", (19.4, 11.1, -10.7), (21.9, 7.7, 8.3)),  # TM3, half-way
    ("H", (22.7, 17.9, 9.9), (19.1, 22.4, -24.2)),  # TM4
    ("H", (33, 21.5, -25.6), (27.1, 27.3, 18.6)),  # TM5
    ("H", (35, 16.1, 17.1), (33.5, 14.2, -9.8)),  # TM6
    ("H", (42.2, 26.6, -10.7), (39, 22.5, 26.5)),  # TM7
    ("H", (30.2, 17.1, 26.5), (26.7, 1.7, 21.8)),  # outer loop
    ("H", (13.2, 4.8, 16.2), (13.2, -1.8, -16.1)),  # TM8 = TM1 inverted
    ("H", (3.3, -7.5, -15.7), (9.2, -4.7, 15.1)),  # TM9
    ("H", (21.3, -2.8, 12), (23.2, 0.4, -7.2)),  # TM10, half-way
    ("H", (16.6, -9.1, -8.7), (16.2, -12.2, 25.7)),  # TM11
    ("H", (30.9, -8.2, 25.9), (24.1, -11.2, -18.5)),  # TM12
    ("H", (33.4, -1.3, -18.2), (32.1, -0.5, 8.8)),  # TM13
    ("H", (38.7, -13.4, 7.8), (31.9, -9.4, -28.9)),  # TM14
    ("E", (18.5, -3.8, -36.4), (15.6, -3.7, -52.9)),  # STAS domain
    ("E", (12.9, -8.6, -51.9), (21.4, -8.6, -37.5)),
    ("E", (18.6, 1, -52.9), (15.6, 1.1, -36.4)),
    ("H", (27.9, 5.9, -39.4), (27.1, -2.3, -57.1)),
    ("E", (10.8, -13.3, -50.2), (23.4, -13.4, -39.2)),
    ("H", (8.7, -7.7, -34.1), (6.6, -0.3, -53.6)),
    ("E", (21.2, 5.9, -52), (13, 5.8, -37.4)),
    ("H", (3.3, 5.2, -40.6), (11.8, 11.1, -58.9)),
    ("E", (23.4, 10.7, -50.1), (10.8, 10.7, -39.2)),
    ("H", (25.9, 0, -30.7), (32.1, -7.4, -47.7)),
    ("H", (30, -19.7, -49.5), (31.4, -18.8, -27)),
)


def subunit(table, n_fold: int, membrane_z_A: tuple[float, float], seed: int) -> dict:
    """Build one subunit of `n_fold` about z, the whole molecule's centre of mass at z = 0.

    Positions and B factors are rounded to float32, by 4e-6 Å at most.
    """
    turns = Rotation.create_group(f"C{n_fold}").as_matrix()
    backbone, is_loop = trace(table, turns)
    xyz, element, residue = _add_side_chains(backbone, turns, np.random.default_rng(seed))
    mass = np.select([element == e for e in "CNOS"], [12.011, 14.007, 15.999, 32.06])
    z0 = float(np.average(xyz[:, 2], weights=mass))
    xyz = xyz - [0.0, 0.0, z0]
    b_factor = 25.0 + 0.01 * (xyz**2).sum(1) + 15.0 * is_loop[residue]  # higher far out, in loops
    return {
        "xyz_A": xyz.astype(np.float32),
        "element": element,
        "b_factor": b_factor.astype(np.float32),
        "membrane_z_A": np.subtract(membrane_z_A, z0),
    }


def trace(table, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Backbone N, CA, C (residue, 3, 3) of a subunit; whether each residue is in a loop."""
    strands = [np.add(start, end) / 2 for kind, start, end in table if kind == "E"]
    pieces = []
    for i, (kind, start, end) in enumerate(table):
        facing = start - np.mean(strands, 0) if kind == "E" else np.array([np.cos(i), np.sin(i), 0])
        pieces.append(ideal_backbone(kind, np.array(start), np.array(end), facing))
    for i in range(len(table) - 1, 0, -1):
        before, after = pieces[i - 1], pieces[i]
        others = np.concatenate([before[:-1], after[1:], *pieces[: i - 1], *pieces[i + 1 :]])
        others = np.concatenate([_copies(others.reshape(-1, 3), turns), AXIS])
        ways = [_loop(before, after, b, s) for b in (0, 4, 8, 12, 16) for s in range(0, 360, 60)]
        pieces.insert(i, _roomiest(ways, others)[0])
    is_loop = np.concatenate([np.full(len(piece), i % 2 == 1) for i, piece in enumerate(pieces)])
    return np.concatenate(pieces), is_loop


def _copies(xyz: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Positions (k * n, 3) of n atoms in all k subunits."""
    return np.einsum("kij,nj->kni", turns, xyz).reshape(-1, 3)


def _roomiest(ways: list | np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float]:
    """Of several placements the one farthest from other atoms, and that distance in Å."""
    reach = np.concatenate(ways).reshape(-1, 3)
    if not len(reach):
        return ways[0], 9.0
    near = (others > reach.min(0) - 4.0).all(1) & (others < reach.max(0) + 4.0).all(1)
    tree = KDTree(others[near])
    room = [tree.query(way.reshape(-1, 3))[0].min() for way in ways]
    best = int(np.argmax(room))
    return ways[best], room[best]


def _loop(before: np.ndarray, after: np.ndarray, bulge: float, spin: float) -> np.ndarray:
    """Extended backbone (residue, 3, 3) along a smooth curve between two elements.

    The curve is a cubic Hermite spline, longer with `bulge` (Å); atoms zigzag about it in a plane
    set by `spin` (degrees), with bonds near 1.45 Å.
    """
    p0, p1 = before[-1, 2], after[0, 0]
    out = before[-3:].mean((0, 1)) - before[-6:-3].mean((0, 1))
    into = after[3:6].mean((0, 1)) - after[:3].mean((0, 1))
    reach = np.linalg.norm(p1 - p0)
    m0, m1 = unit(out) * (reach + bulge), unit(into) * (reach + bulge)
    t = np.linspace(0, 1, 200)[:, None]
    curve = (2 * t**3 - 3 * t**2 + 1) * p0 + (t**3 - 2 * t**2 + t) * m0
    curve += (3 * t**2 - 2 * t**3) * p1 + (t**3 - t**2) * m1
    arc = np.append(0.0, np.linalg.norm(np.diff(curve, axis=0), axis=1).cumsum())
    n = max(round((arc[-1] / 1.17 - 1) / 3), 1)
    at = np.linspace(0, arc[-1], 3 * n + 2)[1:-1]  # N, CA, C of each residue
    path = np.stack([np.interp(at, arc, axis) for axis in curve.T], -1)
    along, spin = unit(np.gradient(path, axis=0)), np.radians(spin)
    side = unit(np.cross(along, [0.48, 0.6, 0.64]))
    side = np.cos(spin) * side + np.sin(spin) * np.cross(along, side)
    side[1::2] *= -1
    return (path + 0.42 * side).reshape(n, 3, 3)


def _add_side_chains(backbone: np.ndarray, turns: np.ndarray, rng) -> tuple[np.ndarray, ...]:
    """All atoms of a subunit: positions (n, 3), elements (n,), residue numbers (n,).

    Residue types are drawn at natural frequencies. Of nine rotamers the one farthest from
    everything placed so far (in all subunits) is kept; a side chain with no room becomes alanine.
    """
    weights = np.array(list(FREQUENCIES.values())) / sum(FREQUENCIES.values())
    letters = rng.choice(list(FREQUENCIES), len(backbone), p=weights)
    core = with_o_and_cb(backbone)
    placed = np.concatenate([_copies(core.reshape(-1, 3), turns), AXIS])
    owner = np.full(len(placed), -1)  # residue of the first subunit that an atom belongs to
    owner[: 5 * len(core)] = np.repeat(np.arange(len(core)), 5)
    chi = np.array([(a, b) for a in ROTAMERS for b in ROTAMERS]).T
    tails, names = [], []
    for i, letter in enumerate(letters):
        ways = _side_chains(letter, *core[i, [0, 1, 4]], *chi)
        tail, room = _roomiest(ways, placed[owner != i])
        tail = tail if room > 2.3 else tail[:0]
        tails.append(tail)
        names.append([*"NCCOC", *(a[0] for a in SIDE_CHAINS[letter][: len(tail)])])
        placed = np.concatenate([placed, _copies(tail, turns)])
        owner = np.append(owner, [-1] * len(turns) * len(tail))
    xyz = np.concatenate([np.concatenate(pair) for pair in zip(core, tails, strict=True)])
    return xyz, np.concatenate(names), np.repeat(np.arange(len(core)), [len(a) for a in names])


def _side_chains(letter: str, n, ca, cb, chi1: np.ndarray, chi2: np.ndarray) -> np.ndarray:
    """Atoms (ways, k, 3) beyond CB, the first two torsions turned by `chi1`, `chi2` degrees."""
    chain = [n, ca, cb]
    before = {2: 1, 1: 0}  # who each atom hangs on
    for _, parent, torsion in SIDE_CHAINS[letter]:
        p = parent + 2
        turned = torsion + (chi1 if parent == 0 else chi2 if parent == 1 else 0 * chi1)
        chain.append(_bond(chain[before[before[p]]], chain[before[p]], chain[p], turned))
        before[len(chain) - 1] = p
    return np.stack(chain[3:], 1) if chain[3:] else np.empty((len(chi1), 0, 3))


def _bond(a, b, c, torsion: np.ndarray) -> np.ndarray:
    """Positions (ways, 3) of d, bonded to c, with each torsion a-b-c-d in degrees."""
    length, angle = 1.5, np.radians(113.0)  # of a bond in a side chain, in Å
    torsion = np.radians(torsion)[:, None]
    bc = unit(c - b)
    normal = unit(np.cross(b - a, bc))
    along = np.cos(torsion) * np.cross(normal, bc) + np.sin(torsion) * normal
    return c + length * (np.sin(angle) * along - np.cos(angle) * bc)


# Table, symmetry, faces of the membrane in Å in the table's frame, and seed.
MOLECULES = {
    "channel": (CHANNEL, 4, (18.0, 50.0), 1),
    "prestin": (PRESTIN, 2, (-16.0, 16.0), 2),
}

if __name__ == "__main__":
    for name, description in MOLECULES.items():
        path = Path(molecules.__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **subunit(*description))
        print(path)
