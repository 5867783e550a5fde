"""Projection against real space, its gradient, and shifts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch_fourier_slice import project_3d_to_2d

from cryonb.physics.geometry import random_rotations
from cryonb.physics.projection import project, shift_images


def phantom(n: int, seed: int = 0, blobs: int = 30, width: float = 1.5) -> torch.Tensor:
    """Gaussian blobs without any symmetry inside 0.7 of the inscribed sphere, float64."""
    g = np.random.default_rng(seed)
    centres = g.normal(size=(blobs, 3))
    centres *= (0.35 * n * g.random(blobs) ** (1 / 3) / np.linalg.norm(centres, axis=1))[:, None]
    c = np.arange(n) - n // 2
    z, y, x = (np.exp(-((c - centres[:, i, None]) ** 2) / (2 * width**2)) for i in range(3))
    return torch.tensor(np.einsum("b,bz,by,bx->zyx", 0.5 + g.random(blobs), z, y, x))


def rotate_and_sum(volume: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """I(x, y) = sum over z of V(R (x, y, z)) by quintic splines in real space."""
    centre = np.full(3, volume.shape[0] // 2)
    matrix = rotation[::-1, ::-1]  # xyz -> zyx
    rotated = scipy.ndimage.affine_transform(volume, matrix, centre - matrix @ centre, order=5)
    return rotated.sum(0)


def relative_error(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("n", [48, 49])
def test_projection_equals_rotation_and_sum(n):
    volume = phantom(n)
    rotations = random_rotations(6, torch.Generator().manual_seed(0))
    expected = np.stack([rotate_and_sum(volume.numpy(), r.double().numpy()) for r in rotations])
    error = relative_error(project(volume, rotations).numpy(), expected)
    # Measured 0.1 %, which is the spline's own error, too. A wrong centre, axis order or handedness
    # gives 30 % and more.
    assert error < 0.003
    assert relative_error(project(volume, rotations.mT).numpy(), expected) > 0.3
    assert relative_error(project(volume, rotations, padding=1.25).numpy(), expected) < 0.005


def test_projection_agrees_with_torch_fourier_slice():
    volume = phantom(48).float()
    rotations = random_rotations(6, torch.Generator().manual_seed(1))
    reference = project_3d_to_2d(volume, rotations, pad_factor=3.0)
    # The library samples the image three times as finely: measured 0.4 %.
    assert relative_error(project(volume, rotations).numpy(), reference.numpy()) < 0.01


@pytest.mark.parametrize("n", [24, 25])
def test_unrotated_projection_is_the_sum_over_z(n):
    volume = phantom(n)
    image = project(volume, torch.eye(3)[None])[0]
    # The worst pose there is, for the errors of all points of the grid are alike: measured 0.8 %.
    assert relative_error(image.numpy(), volume.sum(0).numpy()) < 0.012


@pytest.mark.parametrize("n", [16, 17])
def test_the_gradient_of_projection_is_its_adjoint(n):
    g = torch.Generator().manual_seed(0)
    rotations, shifts = random_rotations(7, g), 3 * torch.randn(7, 2, generator=g)
    volume, images = torch.rand(n, n, n, generator=g), torch.rand(7, n, n, generator=g)
    at = torch.zeros(n, n, n, requires_grad=True)
    project(at, rotations, shifts, batch_size=3).backward(images)
    left = (project(volume, rotations, shifts).double() * images).sum()
    right = (volume.double() * at.grad).sum()
    # Both sides are sums of thousands of positive float32 terms: relative rounding about 1e-6.
    torch.testing.assert_close(left, right, rtol=1e-5, atol=0)


def test_several_volumes_are_projected_with_the_same_poses():
    volumes = torch.stack([phantom(20, 0), phantom(20, 1)]).float()
    rotations = random_rotations(5, torch.Generator().manual_seed(2))
    both = project(volumes, rotations, batch_size=2)
    assert both.shape == (2, 5, 20, 20)
    for volume, images in zip(volumes, both, strict=True):
        torch.testing.assert_close(project(volume, rotations), images, atol=1e-4, rtol=0)
    assert project(volumes, rotations[:0]).shape == (2, 0, 20, 20)


@pytest.mark.parametrize("n", [24, 25])
def test_shifts_move_towards_larger_index(n):
    images = torch.rand(2, n, n)
    shifts = torch.tensor([[3.0, -2.0], [0.0, 5.0]])
    moved = shift_images(images, shifts)
    for image, shift, out in zip(images, shifts, moved, strict=True):
        expected = torch.roll(image, tuple(shift.int().tolist()), dims=(0, 1))
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    volume, rotations = phantom(n), random_rotations(2)
    torch.testing.assert_close(
        project(volume, rotations, shifts)[:, 6:-6, 6:-6],
        shift_images(project(volume, rotations), shifts)[:, 6:-6, 6:-6],
        # The two cut off what leaves the box in another order: measured 1e-2 of a maximum of 20.
        atol=0.1,
        rtol=0,
    )


def test_wrong_shapes_are_refused():
    volume, rotations = torch.rand(8, 8, 8), random_rotations(3)
    with pytest.raises(ValueError, match="cubic"):
        project(volume[:4], rotations)
    with pytest.raises(ValueError, match=r"pass \(n, 3, 3\)"):
        project(volume, rotations[0])
    with pytest.raises(ValueError, match=r"pass \(3, 2\)"):
        project(volume, rotations, torch.zeros(2, 2))
