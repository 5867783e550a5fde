"""Poses and shifts found again, with symmetry and CTF."""

from __future__ import annotations

import pytest
import torch
from test_posterior import BOX
from test_projection import phantom

from cryonb.data.volumes import load_volume
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import low_pass
from cryonb.physics.geometry import angular_distance_deg, random_rotations
from cryonb.physics.projection import project
from cryonb.poses.search import estimate_poses
from cryonb.simulation.simulate import clean_scale, noise_sigma


@pytest.fixture(scope="module")
def channel():
    volume = load_volume("channel", 48, 4.0)
    return volume.map / clean_scale(volume), volume.symmetry


def views(volume, n, sigma, shifts=None, wave=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rotations = random_rotations(n, generator)
    images = project(volume, rotations, shifts)
    images = images if wave is None else apply_ctf(images, wave)
    return rotations, images + sigma * torch.randn(images.shape, generator=generator)


def test_poses_of_a_symmetric_molecule_in_noise(channel):
    """Median error below 3 degrees at SNR 0.1, up to the symmetry."""
    volume, symmetry = channel
    sigma = noise_sigma(0.1)
    rotations, noisy = views(volume, 40, sigma)
    found = estimate_poses(volume, noisy, sigma, symmetry)
    error = angular_distance_deg(found.rotations, rotations, symmetry)
    assert error.median() < 3
    assert torch.equal(found.shifts_px, torch.zeros(40, 2))
    assert (found.log_weight <= 0).all()


@pytest.mark.parametrize("with_ctf", [False, True])
def test_shifts_and_poses_are_found_together(with_ctf):
    """To a tenth of a pixel and a few degrees, of a molecule of blobs four pixels wide."""
    volume = phantom(BOX, width=1.6).float()
    volume = volume / project(volume, random_rotations(64, torch.Generator().manual_seed(9))).std()
    generator = torch.Generator().manual_seed(1)
    shifts = 6 * torch.rand(60, 2, generator=generator) - 3
    wave, sigma = None, 0.5
    if with_ctf:  # so near to focus it takes away most of the contrast
        wave = ctf(BOX, 4.0, 0.2 + 0.3 * torch.rand(60, generator=generator))
        sigma = 0.1
    rotations, noisy = views(volume, 60, sigma, shifts, wave)
    found = estimate_poses(
        volume, noisy, sigma, ctf=wave, most_shift_px=4, spacings_deg=(8.0, 4.0, 2.0)
    )
    assert (found.shifts_px - shifts).abs().median() < 0.1
    assert angular_distance_deg(found.rotations, rotations).median() < 4


def test_a_finer_grid_finds_them_better(channel):
    volume, symmetry = channel
    rotations, noisy = views(volume, 24, 0.3)
    errors = [
        angular_distance_deg(
            estimate_poses(volume, noisy, 0.3, symmetry, spacings_deg=spacings).rotations,
            rotations,
            symmetry,
        ).median()
        for spacings in ((8.0,), (8.0, 4.0), (8.0, 4.0, 2.0))
    ]
    assert errors[2] < errors[1] < errors[0] and errors[2] < 1.2


def test_a_smaller_box_finds_the_same_poses_of_a_blurred_molecule(channel):
    """Nyquist of 24 px is 16 Å: all that a reference of 20 Å holds. Shifts come in given pixels."""
    volume, symmetry = channel
    blurred, sigma = low_pass(volume, 20.0, 4.0), noise_sigma(0.5)
    shifts = torch.tensor([[2.0, -1.0]]).expand(20, 2)
    rotations, noisy = views(blurred, 20, sigma, shifts)
    options = {"most_shift_px": 4, "spacings_deg": (8.0, 4.0)}
    full = estimate_poses(blurred, noisy, sigma, symmetry, **options)
    small = estimate_poses(blurred, noisy, sigma, symmetry, box_size=24, **options)
    errors = [angular_distance_deg(p.rotations, rotations, symmetry) for p in (full, small)]
    assert errors[1].median() < errors[0].median() + 0.5 and errors[1].median() < 4
    assert (small.shifts_px - shifts).abs().median() < 0.3
    truth = project(blurred, rotations, shifts)
    for found in (full, small):
        assert found.mean.shape == noisy.shape
        assert (found.mean - truth).square().mean() < 0.3  # of the signal's variance, 1
    with pytest.raises(ValueError, match="sampled for one box"):
        estimate_poses(blurred, noisy, sigma, ctf=torch.ones(1, 48, 25), box_size=24)


def test_impossible_input_is_refused(channel):
    volume, _ = channel
    with pytest.raises(ValueError, match="shifts of up to -1 px"):
        estimate_poses(volume, torch.zeros(2, 48, 48), 1.0, most_shift_px=-1)
    with pytest.raises(ValueError, match="sigma is 0"):
        estimate_poses(volume, torch.zeros(2, 48, 48), 0.0, spacings_deg=(40.0,))
