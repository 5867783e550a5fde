"""Polar Fourier coefficients, against sums over pixels and turned projections."""

from __future__ import annotations

import pytest
import torch
from test_projection import phantom, relative_error
from torch.testing import assert_close

from cryonb.physics.geometry import euler_to_matrix, random_rotations
from cryonb.physics.projection import FINER, WIDTH, Transform, kernel, project, shift_images
from cryonb.poses.slices import Slices, _finer
from cryonb.poses.steerable import (
    PolarGrid,
    energy,
    evaluate,
    expand,
    moved,
    pairs,
    products_over_turns,
    sample,
    synthesise,
)


def particles(box: int, n: int = 5, psi_deg: float = 0.0) -> torch.Tensor:
    """Projections of an asymmetric molecule, all turned in the plane by `psi_deg`."""
    angles = torch.rand(n, 3, generator=torch.Generator().manual_seed(0)) * 180
    turned = euler_to_matrix(angles + torch.tensor([0.0, 0.0, psi_deg]))
    return project(phantom(box, width=1.8).float(), turned)


def analyse(images: torch.Tensor) -> torch.Tensor:
    """Coefficients of all that the images hold."""
    grid = PolarGrid.whole(images.shape[-1])
    return expand(sample(images, grid), grid.orders)


@pytest.mark.parametrize("box", [32, 33])
def test_images_come_back(box):
    images, grid = particles(box), PolarGrid.whole(box)
    samples = sample(images, grid)
    assert (
        relative_error(evaluate(expand(samples, grid.orders), grid.angles), samples) < 1e-4
    )  # float32
    assert relative_error(synthesise(samples, grid), images) < 0.003  # blobs reach the rim


@pytest.mark.parametrize("box", [32, 33])
def test_slices_read_on_spheres_are_those_of_the_projections(box):
    volume, grid = phantom(box, width=1.8).float(), PolarGrid.whole(box)
    poles = euler_to_matrix(torch.tensor([[0.0, 0, 0], [30, 180, 0], [0, 90, 0], [250, 91, 40]]))
    poses = torch.cat([poles, random_rotations(8, torch.Generator().manual_seed(0))])
    slices = Slices.of(Transform.of(volume[None], WIDTH), grid).at(poses[..., :2])[0]
    images = synthesise(evaluate(expand(slices, grid.orders), grid.angles), grid)
    assert relative_error(images, project(volume, poses)) < 0.01


@pytest.mark.parametrize("order", [0, 1, 4, 13])
def test_a_wave_read_between_its_values_keeps_its_size(order):
    n, at = 16, torch.arange(400) * torch.pi / 400
    grid = at * FINER * n / torch.pi
    lowest, taps = torch.ceil(grid - WIDTH / 2), torch.arange(WIDTH)
    fine = _finer(n, order % 2) @ torch.cos(order * torch.arange(n) * torch.pi / n + 0.3)
    index = (lowest.long() + WIDTH // 2)[:, None] + taps
    found = (fine[index] * kernel((lowest - grid)[:, None] + taps, WIDTH)).sum(1)
    true = torch.cos(order * at + 0.3)
    assert float(found @ true / true.square().sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("box", [32, 33])
def test_synthesis_is_the_adjoint_of_sampling(box):
    """To Nyquist: <sample(x), s> = <x, synthesise(s)>, for anything that is not smooth."""
    g, grid = torch.Generator().manual_seed(0), PolarGrid.whole(box)
    images = torch.randn(8, box, box, generator=g)
    samples = torch.zeros_like(sample(images, grid))
    samples[..., -1] = torch.randn(samples.shape[:-1], generator=g)  # the outermost ring
    there = (sample(images, grid) * samples).sum() / grid.angles
    assert_close((images * synthesise(samples, grid)).sum(), there, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("box", [32, 33])
def test_a_shift_is_a_phase(box):
    """Of particles that stay inside the circle; by a part of a pixel, too."""
    images, grid, shift = particles(box), PolarGrid.whole(box), torch.tensor([[1.0, -0.5]])
    shifted = moved(sample(images, grid), grid.shift_phases(shift))
    expected = shift_images(images, shift.expand(len(images), 2))
    assert relative_error(synthesise(shifted, grid), expected) < 0.01


@pytest.mark.parametrize("box", [32, 33])
def test_products_and_norms_are_those_of_the_pixels(box):
    images = particles(box)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    x, y = analyse(noise), analyse(images)
    at_zero = products_over_turns(x, pairs(y), 128)[..., 0]
    size = images.square().sum((1, 2)).sqrt().max() * noise.square().sum((1, 2)).sqrt().max()
    assert_close(at_zero, noise.flatten(1) @ images.flatten(1).T, rtol=0, atol=2e-3 * float(size))
    assert_close(energy(y).sum(1), images.square().sum((1, 2)), rtol=2e-3, atol=0)


@pytest.mark.parametrize("box", [32, 33])
def test_a_turn_of_the_particle_is_a_turn_of_the_products(box):
    """<y_psi, y_turn> is largest, and equal to the norm, where turn = psi."""
    y, turned = analyse(particles(box)), analyse(particles(box, psi_deg=90.0 + 45.0))
    products = products_over_turns(turned, pairs(y), 128).diagonal().T  # (n, turns)
    assert (products.argmax(1) == 128 * 135 // 360).all()
    assert_close(products.amax(1), energy(turned).sum(1), rtol=5e-3, atol=0)


def test_rings_cover_the_plane_to_nyquist():
    rings = PolarGrid.whole(32).radii
    assert 0 < rings.min() and rings.max() < 0.5
    flat = torch.ones(1, 32, 32)  # a disc: most power near the origin
    power = energy(analyse(flat))[0]
    assert power[rings < 0.1].sum() > 0.9 * power.sum()
