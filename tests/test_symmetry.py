"""Axes of a map that stands anyhow: found where they are, offered only where there are some."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryonb.data.volumes import load_volume
from cryonb.evaluation.metrics import correlation
from cryonb.physics.fourier import low_pass
from cryonb.physics.geometry import symmetry_rotations
from cryonb.poses import symmetry as module
from cryonb.poses.symmetry import agreement, find_axis, offered, to_axes, turned

TILTED = Rotation.from_euler("ZYZ", [20, 50, 31], degrees=True)


def blobs(symmetry, n=32):
    """A map of the symmetry, of Gaussians in no order."""
    at = torch.cartesian_prod(*[torch.arange(n) - n // 2] * 3).float().flip(1)  # x, y, z
    places = torch.tensor([[7.0, 2.0, 3.0], [4.0, -3.0, -5.0], [9.0, 5.0, -1.0]])
    copies = torch.einsum("gij,pj->gpi", symmetry_rotations(symmetry), places).flatten(0, 1)
    return sum(torch.exp(-(at - place).square().sum(1) / 8) for place in copies).view(n, n, n)


@pytest.mark.parametrize("n", [32, 33])
def test_a_quarter_turn_about_z_moves_x_to_y(n):
    volume = torch.zeros(n, n, n)
    volume[n // 2 + 2, n // 2, n // 2 + 5] = 1  # at x = 5, z = 2
    there = turned(volume, Rotation.from_euler("z", -90, degrees=True))
    assert float(there[n // 2 + 2, n // 2 + 5, n // 2]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("symmetry", ["C2", "C5", "D2", "D3"])
def test_axes_are_turned_to_where_the_group_has_them(symmetry):
    stood = to_axes(turned(blobs(symmetry), TILTED), symmetry)
    for turn in symmetry_rotations(symmetry):
        again = turned(stood, Rotation.from_matrix(turn.numpy()))
        assert float(correlation(again, stood, dims=3)) > 0.97


def test_an_axis_is_found_to_a_degree():
    axis = find_axis(turned(blobs("C4"), TILTED), 4)[0]
    true = TILTED.inv().apply([0.0, 0.0, 1.0])  # R x is on the axis of the map before
    assert abs(axis @ true) > np.cos(np.radians(1))


def test_a_usual_axis_is_60_degrees_from_the_best(monkeypatch):
    """Half of all directions are nearer to a line than that."""
    monkeypatch.setattr(
        module, "agreement", lambda _, axis, __: abs(axis[2]) / np.linalg.norm(axis)
    )
    _, best, usual = find_axis(torch.zeros(8, 8, 8), 2)
    assert best == pytest.approx(1, abs=1e-3) and usual == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("left", "group"),
    [
        ({4: 0.05, 2: 0.04}, "C4"),  # twofold by the way, and by chance a little better
        ({3: 0.05, 6: 0.2}, "C3"),
        ({3: 0.3}, None),
        ({5: 0.2, 3: 0.35}, None),
    ],
)
def test_the_largest_order_of_the_least_disagreement_is_offered(monkeypatch, left, group):
    monkeypatch.setattr(
        module, "find_axis", lambda _, n_fold: (None, 1 - 0.5 * left.get(n_fold, 1), 0.5)
    )
    found = offered(torch.zeros(8, 8, 8))
    assert (found and found[0]) == group


def test_what_is_there_is_offered_and_nothing_else():
    channel = low_pass(load_volume("channel", 32, 6.0).map, 24.0, 6.0)
    group, agrees, usual = offered(turned(channel, TILTED))
    assert group == "C4" and agrees > 0.9 > usual
    at = torch.cartesian_prod(*[torch.arange(32) - 16.0] * 3)
    rod = torch.exp(-(at / torch.tensor([9.0, 3.0, 3.0])).square().sum(1) / 2).view(32, 32, 32)
    assert offered(blobs("C1")) is None and offered(turned(rod, TILTED)) is None
    assert agreement(blobs("C3"), np.array([0.0, 0.0, 2.0]), 3) == pytest.approx(1, abs=0.02)
