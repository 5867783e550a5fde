"""The closest projection as truth: right where noise is weak, and worth less where it is not."""

from __future__ import annotations

import pytest
import torch
from test_projection import phantom

from cryonb.data.particle_file import stream_particles
from cryonb.data.particles import particles_from_arrays, write_particles
from cryonb.data.volumes import load_volume
from cryonb.data.whitening import amplitude, measure_noise, to_network
from cryonb.evaluation.metrics import correlation
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.fourier import filter_radially
from cryonb.physics.geometry import angular_distance_deg, random_rotations
from cryonb.physics.projection import project
from cryonb.poses.closest import closest_projections

BOX, PIXEL_A = 32, 6.0


def particles_of(volume, n, sigma, most_shift_px=2.0, seed=0):
    """Poses, shifts, CTFs, clean images, the same with CTF, and noisy; the CTF's deviation is 1."""
    generator = torch.Generator().manual_seed(seed)
    rotations = random_rotations(n, generator)
    shifts = most_shift_px * (2 * torch.rand(n, 2, generator=generator) - 1)
    wave = ctf(BOX, PIXEL_A, 0.5 + torch.rand(n, generator=generator))
    clean = project(volume, rotations, shifts)
    clean = clean / apply_ctf(clean, wave).std()
    observed = apply_ctf(clean, wave)
    noisy = observed + sigma * torch.randn(clean.shape, generator=generator)
    return rotations, shifts, wave, clean, observed, noisy


@pytest.fixture(scope="module")
def molecule():
    return load_volume("prestin", BOX, PIXEL_A)


def test_it_is_the_clean_image_where_noise_is_weak(molecule):
    """In the particles' unit, whatever that of the structure. What is left is the grid of poses:
    directions within 2 degrees of the true ones move the rim by half a pixel. One particle in 24
    is led astray by the coarse grid of shifts; so, medians."""
    rotations, shifts, wave, clean, observed, noisy = particles_of(molecule.map, 8, 0.1)
    found = closest_projections(
        1e3 * molecule.map, noisy, 0.1, molecule.symmetry, ctf=wave, most_shift_px=2
    )
    assert angular_distance_deg(found.poses.rotations, rotations, "C2").median() < 3
    assert (found.poses.shifts_px - shifts).abs().median() < 0.06  # by whole pixels: 0.08
    for images, truth in ((found.clean, clean), (found.observed, observed)):
        assert correlation(images, truth).median() > 0.98
        ratio = images.std((1, 2)) / truth.std((1, 2))
        assert float(ratio.median()) == pytest.approx(1, abs=0.1)  # one stray of 8 lowers them all
    assert correlation(found.mean, observed).median() > 0.97


def test_without_ctf_and_shifts(molecule):
    generator = torch.Generator().manual_seed(1)
    clean = project(molecule.map, random_rotations(6, generator))
    noisy = clean + 0.1 * clean.std() * torch.randn(clean.shape, generator=generator)
    found = closest_projections(molecule.map, noisy, 0.1 * float(clean.std()), molecule.symmetry)
    assert torch.equal(found.observed, found.clean) and not found.poses.shifts_px.any()
    assert correlation(found.clean, clean).mean() > 0.98


def test_strong_noise_makes_it_worse_and_flatters_who_knows_the_structure(molecule):
    """The noise chooses the pose, and a method that knows the molecule falls for the same noise."""
    worth = []
    for sigma in (0.3, 4.0):
        _, _, wave, _, observed, noisy = particles_of(molecule.map, 10, sigma)
        found = closest_projections(
            molecule.map, noisy, sigma, molecule.symmetry, ctf=wave, most_shift_px=2
        )
        worth.append(correlation(found.observed, observed).mean())
    assert worth[1] < worth[0] - 0.03
    flattered, true = (correlation(found.mean, x).mean() for x in (found.observed, observed))
    assert flattered > true + 0.02


def test_particles_of_a_star_file_with_ctf_shifts_and_coloured_noise(tmp_path):
    """As 05_real_data does: read, measure the noise, whiten, and look for the closest projection
    with the CTF and the whitening filter in it."""
    volume = phantom(BOX, width=1.6).float()
    rotations, shifts, _, clean, *_ = particles_of(volume, 64, 0.0)
    grain = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    grain = filter_radially(grain, lambda f: 0.3 * (1 + 3 * torch.exp(-((f / 0.1) ** 2))), dims=2)
    defocus_um = torch.linspace(0.5, 1.5, 64)
    plain = particles_from_arrays(
        clean, rotations, PIXEL_A, shifts_px=shifts, defocus_um=defocus_um
    )
    images = 40 - 7 * (apply_ctf(clean, plain.ctf) + grain)  # dark particles, in a camera's unit
    plain = plain.with_images(images, ctf_applied=True)
    star = write_particles(plain, tmp_path / "own.star")
    read = next(stream_particles(star, batch_size=64))
    noise = measure_noise(read, 0.4 * BOX)
    white, _ = to_network(read, noise)
    assert noise.sign == -1
    n = 12
    filters = read.ctf.abs() / amplitude(noise)
    found = closest_projections(volume, white[:n], noise.sigma, ctf=filters[:n], most_shift_px=2)
    assert angular_distance_deg(found.poses.rotations, rotations[:n]).median() < 6
    assert (found.poses.shifts_px - shifts[:n]).abs().median() < 0.3
    assert correlation(found.clean, clean[:n]).mean() > 0.9


def test_what_is_no_structure_of_these_particles_is_refused():
    noisy = torch.randn(2, BOX, BOX, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"\(48, 48, 48\) voxels and the particles 32 px"):
        closest_projections(torch.ones(48, 48, 48), noisy, 1.0)
    with pytest.raises(ValueError, match="structure is empty"):
        closest_projections(torch.zeros(32, 32, 32), noisy, 1.0)
