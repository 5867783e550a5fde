"""A known structure as a denoiser: amplitude, mean, pose and evidence, against the truth."""

from __future__ import annotations

import pytest
import torch
from test_posterior import BOX
from test_projection import phantom
from torch.testing import assert_close

from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.geometry import angular_distance_deg, random_rotations
from cryonb.physics.projection import project
from cryonb.poses.posterior import posterior
from cryonb.poses.reference import fit_amplitude, recogniser, widening
from cryonb.poses.templates import volume_templates

SIGMA = 0.5


@pytest.fixture(scope="module")
def molecule() -> torch.Tensor:
    """Projections have unit variance."""
    volume = phantom(BOX, width=1.6).float()
    return volume / project(volume, random_rotations(64, torch.Generator().manual_seed(9))).std()


@pytest.fixture(scope="module")
def seen(molecule):
    """Poses, shifts, clean images, noisy ones with CTF, the CTF, and the noise alone."""
    generator = torch.Generator().manual_seed(0)
    rotations, n = random_rotations(48, generator), 48
    shifts = 4 * torch.rand(n, 2, generator=generator) - 2
    clean = project(molecule, rotations, shifts)
    wave = ctf(BOX, 4.0, 0.2 + 0.3 * torch.rand(n, generator=generator)) * 2
    noise = SIGMA * torch.randn(clean.shape, generator=generator)
    return rotations, shifts, clean, apply_ctf(clean, wave) + noise, wave, noise


def test_the_amplitude_of_a_structure_in_another_unit_is_found(molecule, seen):
    *_, noisy, wave, _ = seen
    alpha = fit_amplitude(molecule / 7, noisy, SIGMA, ctf=wave, most_shift_px=2)
    assert alpha == pytest.approx(7, rel=0.15)
    with pytest.raises(ValueError, match="empty"):
        fit_amplitude(0 * molecule, noisy, SIGMA)


def test_the_amplitude_does_not_grow_where_poses_are_in_doubt(molecule):
    """E[y^2] is not E[y]^2: without the spread of y it comes out 9 % too large."""
    generator = torch.Generator().manual_seed(0)
    noisy = project(molecule, random_rotations(96, generator))
    noisy = noisy + 4 * torch.randn(noisy.shape, generator=generator)
    assert fit_amplitude(molecule / 7, noisy, 4.0) == pytest.approx(7, rel=0.06)


def test_image_pose_shift_and_evidence(molecule, seen):
    """Evidence tells particles from noise; samples have more error than the mean."""
    rotations, shifts, clean, noisy, wave, noise = seen
    recognise = recogniser(molecule, SIGMA, ctf=wave, spacing_deg=8.0, most_shift_px=3)
    found = recognise(noisy, wave, draws=4, generator=torch.Generator().manual_seed(1))
    error = (found.mean - clean).square().mean()
    assert error < 0.25  # of a variance of 1
    assert 1 < (found.samples - clean).square().mean() / error < 3
    assert angular_distance_deg(found.rotations, rotations).median() < 10
    assert (found.shifts_px - shifts).abs().median() < 0.6
    assert ((found.best_share > 0) & (found.best_share <= 1)).all()
    empty = recognise(noise, wave)
    wins = found.log_evidence[:, None] > empty.log_evidence
    assert wins.float().mean() > 0.98 and empty.log_evidence.median() < 0


def test_a_coarse_grid_takes_a_wider_sigma_and_a_fine_one_does_not(molecule):
    generator = torch.Generator().manual_seed(3)
    clean = project(molecule, random_rotations(96, generator))
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=generator)
    coarse = volume_templates(molecule, 20.0)
    factor = widening(molecule, coarse, 0.5)
    plain, wide = (posterior(coarse, noisy, s).mean for s in (0.5, factor * 0.5))
    assert factor > 1 and (wide - clean).square().mean() < 0.9 * (plain - clean).square().mean()
    assert widening(molecule, volume_templates(molecule, 6.0), 3.0) == 1


def test_without_shifts_it_is_the_posterior(molecule):
    noisy = torch.randn(4, BOX, BOX, generator=torch.Generator().manual_seed(0))
    found = recogniser(molecule, 3.0, spacing_deg=12.0)(noisy)
    expected = posterior(volume_templates(molecule, 12.0), noisy, 3.0)
    assert_close(found.mean, expected.mean)
    assert_close(found.log_evidence, expected.log_evidence)
    assert len(found.samples) == 0


def test_evidence_with_shifts_is_that_of_all_places_a_pixel_apart(molecule):
    clean = project(molecule, random_rotations(12, torch.Generator().manual_seed(5)))
    noisy = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(6))
    found = recogniser(molecule, SIGMA, spacing_deg=8.0, most_shift_px=2, widened=1.4)(noisy)
    places = torch.cartesian_prod(*[torch.arange(-2.0, 3)] * 2)
    templates = volume_templates(molecule, 8.0)
    expected = posterior(templates, noisy, 1.4 * SIGMA, shifts_px=places).log_evidence
    assert abs((found.log_evidence - expected).median()) < 0.5
