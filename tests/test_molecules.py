"""The molecules of the package: geometry of real proteins, exact symmetry, one hand."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from cryonb.data import molecules
from cryonb.data.volumes import from_atoms, read_atoms
from cryonb.physics.fourier import low_pass

MASS = {"C": 13.5, "N": 15.2, "O": 16.3, "S": 32.1}  # with the hydrogens that are not modelled


@pytest.fixture(scope="module")
def tool():
    """The script that wrote the molecules."""
    path = Path(__file__).parents[1] / "tools" / "make_molecules.py"
    spec = importlib.util.spec_from_file_location("make_molecules", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["channel", "prestin"])
def atoms(request):
    return getattr(molecules, request.param)()


def turn_z(degrees):
    return Rotation.from_euler("z", degrees, degrees=True).as_matrix()


def dihedral(p):
    """Dihedral angles in degrees of points (n, 4, 3)."""
    a, b, c = p[:, 1] - p[:, 0], p[:, 2] - p[:, 1], p[:, 3] - p[:, 2]
    u, v = np.cross(a, b), np.cross(b, c)
    sine = np.einsum("ij,ij->i", np.cross(u, v), b) / np.linalg.norm(b, axis=1)
    return np.degrees(np.arctan2(sine, np.einsum("ij,ij->i", u, v)))


def packing(xyz, mass):
    """Grams per cm³ inside the surface that a 1.4 Å probe leaves around atoms of 1.8 Å."""
    low = xyz.min(0) - 6
    axes = [np.arange(a, b + 6, 1.0) for a, b in zip(low, xyz.max(0), strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    away = KDTree(xyz).query(grid, distance_upper_bound=4.0)[0]
    inside = ndimage.distance_transform_edt(away < 3.2) > 1.4
    return mass / inside.sum() * 1.6605


def test_record(atoms):
    n = len(atoms.xyz_A)
    assert atoms.xyz_A.shape == (n, 3) and atoms.xyz_A.dtype == np.float64
    assert atoms.element.shape == atoms.b_factor.shape == (n,)
    assert set(atoms.element) <= set(MASS) and atoms.b_factor.min() > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        atoms.name = "other"


@pytest.mark.slow
def test_files_are_what_the_script_writes(atoms, tool):
    with np.load(Path(molecules.__file__).with_name(f"{atoms.name}.npz")) as kept:
        built = tool.subunit(*tool.MOLECULES[atoms.name])
        assert {key: (kept[key] == built[key]).all() for key in built} == dict.fromkeys(kept, True)
    assert np.array_equal(atoms.xyz_A[: len(built["xyz_A"])], built["xyz_A"])


def test_reading_takes_no_time(atoms):
    started = time.process_time()
    getattr(molecules, atoms.name)()
    assert time.process_time() - started < 0.2


def test_symmetry_and_centre(atoms):
    n = int(atoms.symmetry[1:])
    turned = atoms.xyz_A @ turn_z(360 / n).T
    away, partner = KDTree(atoms.xyz_A).query(turned)
    assert away.max() < 1e-9  # exact up to double precision
    assert np.array_equal(atoms.element, atoms.element[partner])
    assert not KDTree(atoms.xyz_A).query(atoms.xyz_A @ turn_z(180 / n).T)[0].max() < 3
    assert np.abs(atoms.xyz_A.mean(0)).max() < 0.5  # by mass it is 0, by count nearly


def test_size_is_that_of_the_real_ones(atoms):
    height = np.ptp(atoms.xyz_A[:, 2])
    width = 2 * np.hypot(*atoms.xyz_A.T[:2]).max()
    assert 95 < height < 130 and 95 < width < 115
    assert np.linalg.norm(atoms.xyz_A, axis=1).max() < 78  # fits 160 Å in every orientation


def test_membrane_holds_the_transmembrane_helices(atoms, tool):
    low, high = atoms.membrane_z_A
    assert 28 < high - low < 36
    table = {"channel": tool.CHANNEL[3:7], "prestin": tool.PRESTIN[2:4]}[atoms.name]
    middle = np.mean([(a[2] + b[2]) / 2 for _, a, b in table])
    original = {"channel": 34.0, "prestin": 0.0}[atoms.name]
    assert abs(middle - original) < 3  # the slab is centred on the helices of the table


def test_helices_are_right_handed_and_strands_extended():
    helix = molecules.ideal_backbone(
        "H", np.zeros(3), np.array([10.0, 20, 20]), np.array([1.0, 0, 0])
    )
    strand = molecules.ideal_backbone(
        "E", np.zeros(3), np.array([0.0, 0, 20]), np.array([1.0, 0, 0])
    )
    ca = np.stack([helix[i : len(helix) - 3 + i, 1] for i in range(4)], 1)
    assert np.allclose(dihedral(ca), 50.0, atol=3)  # CA dihedral of an ideal alpha helix
    assert np.allclose(dihedral(ca * [-1, 1, 1]), -50.0, atol=3)  # the test can see the hand
    assert np.isclose(np.linalg.norm(helix[-1, 1] - helix[0, 1]), 30.0, atol=0.5)  # 1.5 Å × 20
    ca = np.stack([strand[i : len(strand) - 3 + i, 1] for i in range(4)], 1)
    assert np.all(np.abs(dihedral(ca)) > 150)


@pytest.mark.parametrize("kind", ["H", "E"])
def test_bond_lengths(kind):
    piece = molecules.ideal_backbone(kind, np.zeros(3), np.array([0.0, 5, 25]), np.ones(3))
    n, ca, c = piece.swapaxes(0, 1)
    for a, b, length in ((n, ca, 1.46), (ca, c, 1.52), (c[:-1], n[1:], 1.33)):
        assert np.allclose(np.linalg.norm(b - a, axis=1), length, atol=0.06)  # rounded cylinders


@pytest.mark.slow
def test_chain(atoms, tool):
    table, fold, *_ = tool.MOLECULES[atoms.name]
    turns = np.stack([turn_z(360 / fold * k) for k in range(fold)])
    backbone, is_loop = tool.trace(table, turns)
    assert 500 <= len(backbone) <= 620 and is_loop.mean() < 0.3
    bond = np.linalg.norm(np.diff(backbone.reshape(-1, 3), axis=0), axis=1)
    assert np.quantile(bond, 0.01) > 1.1 and bond.max() < 2.0  # the chain is unbroken
    n, ca, c, _, cb = molecules.with_o_and_cb(backbone).swapaxes(0, 1)
    hand = np.einsum("ij,ij->i", np.cross(n - ca, c - ca), cb - ca)
    assert (hand > 0).all()  # L: looking from CB to CA, N → C turns one way; D would be negative


@pytest.mark.slow
def test_axes_keep_their_distance(atoms, tool):
    table, fold, *_ = tool.MOLECULES[atoms.name]
    lines = [(kind, np.linspace(a, b, 40)) for kind, a, b in table]
    for k in range(fold):
        for i, j in itertools.product(range(len(lines)), repeat=2):
            if k == 0 and j <= i:
                continue
            gap = KDTree(lines[i][1]).query(lines[j][1] @ turn_z(360 / fold * k).T)[0].min()
            sheet = lines[i][0] == lines[j][0] == "E"
            assert gap > (4.3 if sheet else 8.0), (i, j, k)


def test_no_severe_overlap(atoms):
    tree = KDTree(atoms.xyz_A)
    nearest = tree.query(atoms.xyz_A, k=2)[0][:, 1]
    assert (nearest < 1.1).mean() < 0.01  # loops are smooth curves, a few bonds come out short
    crowd = tree.query_ball_point(atoms.xyz_A, 3.0, return_length=True).mean() - 1
    assert 4.5 < crowd < 7.0  # 5.7 in TRPA1; twice that where chains overlap


@pytest.mark.slow
def test_packed_like_a_protein(atoms):
    density = packing(atoms.xyz_A, sum(MASS[e] for e in atoms.element))
    assert 0.8 < density < 1.35


def test_channel_like_trpa1(shared_data):
    ours, real = molecules.channel(), read_atoms(shared_data / "6v9x.pdb")

    def gyration(atoms):
        return np.sqrt((atoms.xyz_A**2).sum(1).mean())

    assert gyration(ours) == pytest.approx(gyration(real), rel=0.05)
    both = [packing(a.xyz_A, sum(MASS[e] for e in a.element)) for a in (ours, real)]
    assert both[0] == pytest.approx(both[1], rel=0.05)
    radius = [np.quantile(np.hypot(*a.xyz_A.T[:2]), [0.25, 0.5, 0.95]) for a in (ours, real)]
    assert np.allclose(*radius, rtol=0.15)


def test_channel_has_a_pore():
    atoms = molecules.channel()
    assert np.hypot(*atoms.xyz_A.T[:2]).min() > 2.0  # no atom near the axis
    volume = from_atoms(atoms, 63, 3.0).map
    low, high = (31 + round(z / 3) for z in atoms.membrane_z_A)
    axis, wall = volume[low:high, 31, 31].mean(), volume[low:high, 24:39, 24:39].mean()
    assert axis < 0.5 * wall


def rotated(volume, matrices):
    """A volume (z, y, x) at every pose (k, 3, 3), trilinear."""
    n = volume.shape[-1]
    g = torch.arange(n) - n // 2.0
    zyx = torch.stack(torch.meshgrid(g, g, g, indexing="ij"), -1)
    at = torch.einsum("kij,abcj->kabci", torch.as_tensor(matrices).float(), zyx.flip(-1))
    grid = (at + n // 2 + 0.5) * 2 / n - 1
    many = volume.expand(len(matrices), 1, n, n, n)
    return torch.nn.functional.grid_sample(many, grid, align_corners=False)[:, 0]


def best_match(volume, target, rng):
    """Highest correlation of `target` with a turned `volume`: coarse search, then refinement."""
    best, score = Rotation.identity(), -1.0
    for spread_deg, count in ((None, 700), (10, 150), (5, 150), (2, 150)):
        tries = Rotation.random(count, random_state=rng)
        if spread_deg:
            steps = rng.normal(0, np.radians(spread_deg), (count, 3))
            tries = best * Rotation.from_rotvec(steps)
        turned = rotated(volume, tries.as_matrix()).flatten(1)
        turned = torch.cat([turned, target.flatten()[None]])
        scores = torch.corrcoef(turned)[-1, :-1]
        if scores.max() > score:
            score, best = float(scores.max()), tries[int(scores.argmax())]
    return score


@pytest.mark.slow
def test_mirror_image_cannot_be_turned_onto_the_molecule():
    volume = low_pass(from_atoms(molecules.channel(), 23, 8.0).map, 20.0, 8.0)
    turn = Rotation.from_rotvec([0.7, 1.1, -0.4]).as_matrix()[None]
    rng = np.random.default_rng(0)
    assert best_match(volume, rotated(volume, turn)[0], rng) > 0.93  # the search finds a turn ...
    assert best_match(volume, volume.flip(-1), rng) < 0.85  # ... and none for the mirror image
