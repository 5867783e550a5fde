"""Rotations against scipy, and the statistics of uniform poses."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation

from cryonb.physics.geometry import (
    angular_distance_deg,
    euler_to_matrix,
    matrix_to_euler,
    random_rotations,
    symmetry_rotations,
)


def test_euler_angles_are_scipys_intrinsic_zyz():
    angles = torch.rand(200, 3, dtype=torch.float64) * 720 - 360
    expected = Rotation.from_euler("ZYZ", angles.numpy(), degrees=True).as_matrix()
    torch.testing.assert_close(euler_to_matrix(angles), torch.tensor(expected))


@pytest.mark.parametrize("tilt", [0.0, 1e-3, 45.0, 90.0, 179.999, 180.0])
def test_matrix_to_euler_round_trip_poles_included(tilt):
    angles = torch.tensor([[33.0, tilt, -120.0]], dtype=torch.float64)
    back = matrix_to_euler(euler_to_matrix(angles))
    torch.testing.assert_close(euler_to_matrix(back), euler_to_matrix(angles), atol=1e-8, rtol=0)
    assert 0 <= back[0, 1] <= 180


def test_random_rotations_are_uniform_and_repeat():
    R = random_rotations(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(R, random_rotations(20_000, torch.Generator().manual_seed(0)))
    eye = torch.eye(3).expand_as(R)
    torch.testing.assert_close(R @ R.mT, eye, atol=1e-6, rtol=0)
    assert (torch.linalg.det(R) > 0).all()
    # Uniform on SO(3): entries have mean 0 and variance 1/3 (standard errors 0.004 and 0.002), and
    # the angle has density (1 - cos t) / pi, mean pi/2 + 2/pi = 126.5 degrees (error 0.25).
    assert R.mean(0).abs().max() < 0.02
    assert (R.square().mean(0) - 1 / 3).abs().max() < 0.012
    angle = angular_distance_deg(R, torch.eye(3)).mean()
    assert abs(angle - 126.48) < 1.2


@pytest.mark.parametrize(("name", "order"), [("C1", 1), ("C4", 4), ("c7", 7), ("D2", 4), ("D3", 6)])
def test_symmetry_rotations_form_a_group(name, order):
    g = symmetry_rotations(name)
    assert g.shape == (order, 3, 3)
    products = (g[:, None] @ g[None]).reshape(-1, 1, 3, 3)
    nearest = (products - g).abs().amax((-1, -2)).amin(-1)
    assert nearest.max() < 1e-6
    assert torch.cdist(g.flatten(1), g.flatten(1)).fill_diagonal_(9).min() > 0.1


def test_symmetry_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="'C1', 'C4' or 'D2'"):
        symmetry_rotations("I1")


def test_angular_distance_sees_the_angle_and_the_symmetry():
    a = random_rotations(50, torch.Generator().manual_seed(1))
    small = euler_to_matrix(torch.tensor([[0.0, 0.0, 0.01]]))
    torch.testing.assert_close(
        angular_distance_deg(a, a @ small), torch.full((50,), 0.01), atol=1e-3, rtol=0
    )  # float32 matrices resolve about 1e-3 degrees near a = b
    quarter = symmetry_rotations("C4")[1]
    torch.testing.assert_close(angular_distance_deg(a, quarter @ a), torch.full((50,), 90.0))
    assert angular_distance_deg(a, quarter @ a, "C4").max() < 0.01
    assert angular_distance_deg(a, a @ quarter, "C4").max() > 10  # acts on the volume's side only
