"""Polar Fourier coefficients, against sums over pixels and turned projections."""

from __future__ import annotations

import pytest
import torch
from test_projection import phantom, relative_error
from torch.testing import assert_close

from cryonb.physics.geometry import euler_to_matrix
from cryonb.physics.projection import project
from cryonb.poses.steerable import (
    analyse,
    energy,
    products_over_turns,
    ring_frequencies,
    synthesise,
)


def particles(box: int, n: int = 5, psi_deg: float = 0.0) -> torch.Tensor:
    """Projections of an asymmetric molecule, all turned in the plane by `psi_deg`."""
    angles = torch.rand(n, 3, generator=torch.Generator().manual_seed(0)) * 180
    turned = euler_to_matrix(angles + torch.tensor([0.0, 0.0, psi_deg]))
    return project(phantom(box, width=1.8).float(), turned)


@pytest.mark.parametrize("box", [32, 33])
def test_images_come_back(box):
    images = particles(box)
    assert relative_error(synthesise(analyse(images), box), images) < 0.02  # blobs reach the rim


@pytest.mark.parametrize("box", [32, 33])
def test_products_and_norms_are_those_of_the_pixels(box):
    images = particles(box)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    x, y = analyse(noise), analyse(images)
    at_zero = products_over_turns(x, y, 128)[..., 0]
    size = images.square().sum((1, 2)).sqrt().max() * noise.square().sum((1, 2)).sqrt().max()
    assert_close(at_zero, noise.flatten(1) @ images.flatten(1).T, rtol=0, atol=2e-3 * float(size))
    assert_close(energy(y).sum(1), images.square().sum((1, 2)), rtol=2e-3, atol=0)


@pytest.mark.parametrize("box", [32, 33])
def test_a_turn_of_the_particle_is_a_turn_of_the_products(box):
    """<y_psi, y_turn> is largest, and equal to the norm, where turn = psi."""
    y, turned = analyse(particles(box)), analyse(particles(box, psi_deg=90.0 + 45.0))
    products = products_over_turns(turned, y, 128).diagonal().T  # (n, turns)
    assert (products.argmax(1) == 128 * 135 // 360).all()
    assert_close(products.amax(1), energy(turned).sum(1), rtol=5e-3, atol=0)


def test_rings_cover_the_plane_to_nyquist():
    rings = ring_frequencies(32)
    assert 0 < rings.min() and rings.max() < 0.5
    flat = torch.ones(1, 32, 32)  # a disc: most power near the origin
    power = energy(analyse(flat))[0]
    assert power[rings < 0.1].sum() > 0.9 * power.sum()
