"""Random molecules: plausible, different, symmetric, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryonb.data.volumes import from_atoms, load_volume
from cryonb.learning.diffusion import SR3
from cryonb.learning.pretrain import MANY_SNR
from cryonb.learning.train import any_level_loss
from cryonb.physics.fourier import low_pass, radial_frequency, radial_mean
from cryonb.simulation import families
from cryonb.simulation.families import (
    RESIDUE_A3,
    coarse_volume,
    draw_maps,
    random_molecule,
    training_images,
)


def test_molecules_have_the_density_and_symmetry_that_they_say():
    rng = np.random.default_rng(0)
    drawn = [random_molecule(rng) for _ in range(12)]
    assert len({atoms.symmetry for atoms in drawn}) > 2
    for atoms in drawn:
        n = int(atoms.symmetry[1:])
        angle = 2 * np.pi / n
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        first, second = np.split(atoms.xyz_A, n)[0], np.split(atoms.xyz_A, n)[-1]
        if n > 1:
            np.testing.assert_allclose(second[:, :2] @ turn.T, first[:, :2], atol=1e-8)
        residues = len(atoms.xyz_A) / 5
        assert 100 < residues < 6000
        # A ball of the molecule's radius of gyration holds its residues, give or take the shape.
        gyration = np.linalg.norm(atoms.xyz_A - atoms.xyz_A.mean(0), axis=1).std()
        assert 4 / 3 * np.pi * (3 * gyration) ** 3 > 0.1 * RESIDUE_A3 * residues


def test_a_small_subunit_is_nearly_a_ball_of_its_residues():
    ratios = []
    for seed in range(40):
        xyz = families._subunit(120.0, False, np.random.default_rng(seed)).reshape(-1, 3)
        ball_A = (RESIDUE_A3 * len(xyz) / 3 * 3 / (4 * np.pi)) ** (1 / 3)
        ratios.append(np.sqrt((xyz**2).sum(1).mean()) / (np.sqrt(3 / 5) * ball_A))
    assert np.median(ratios) == pytest.approx(1.1, abs=0.15)  # long helices stick out


def test_the_quick_volume_is_nearly_that_of_the_atoms():
    atoms = random_molecule(np.random.default_rng(3))
    pixel_A = 2.2 * np.linalg.norm(atoms.xyz_A, axis=1).max() / 40
    quick, slow = coarse_volume(atoms, 48, pixel_A).map, from_atoms(atoms, 48, pixel_A).map
    both = torch.stack([quick.flatten(), slow.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.97


def test_training_images_are_scaled_and_repeatable():
    target, observed = training_images(2, 4, 32, seed=1)
    assert target.shape == observed.shape == (8, 32, 32)
    assert float(target.std()) == pytest.approx(1, abs=0.25)
    again = training_images(2, 4, 32, seed=1)
    assert torch.equal(target, again[0]) and torch.equal(observed, again[1])
    assert not torch.allclose(training_images(2, 4, 32, seed=2)[0], target)


@pytest.mark.slow
def test_workers_make_the_same_images():
    alone, shared = (training_images(3, 2, 32, seed=1, workers=workers) for workers in (1, 2))
    torch.testing.assert_close(shared, alone, atol=1e-4, rtol=1e-4)  # rounding: other threads


def test_images_of_ones_own_kind(monkeypatch):
    """Molecules of the asked size, at 2 px around the centre, seen through the given filter."""
    drawn = []
    made = families.coarse_volume
    monkeypatch.setattr(families, "coarse_volume", lambda a, *s: drawn.append(a) or made(a, *s))
    passed = (radial_frequency(48, 2) < 0.25).float()[None]
    target, _ = training_images(
        4, 40, 48, seed=3, pixel_size_A=4.0, diameter_A=110.0, transfer=passed
    )
    widths = [2 * np.linalg.norm(atoms.xyz_A, axis=1).max() for atoms in drawn]
    assert len(widths) == 4 and all(0.7 * 110 < width < 1.3 * 110 for width in widths)
    power = radial_mean(torch.fft.rfft2(target).abs().square().mean(0), 48, dims=2)
    assert power[14:].max() < 1e-8 * power[2]
    x = torch.arange(48.0) - 24
    mass = target.sum((1, 2))
    centre = torch.stack([(target * g).sum((1, 2)) / mass for g in (x[:, None], x)])
    assert float(centre.std()) == pytest.approx(2.0, abs=0.25)  # 320 numbers: 4 %


def test_transfer_is_the_modulus_of_a_ctf_times_a_filter_that_dims_low_frequencies():
    kinds = set()
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)
        transfer = families._transfer(3, 32, 3.0, np.random.default_rng(seed), generator)
        assert 0 <= float(transfer.min()) and float(transfer.max()) <= 1
        kinds.add(len(transfer))
        if len(transfer) == 1:  # a filter alone
            assert (transfer[0, 0].diff() >= 0).all() and transfer[0, 0, 0] < transfer[0, 0, -1]
    assert kinds == {1, 3}


def test_drawn_maps_hold_a_third_to_four_thirds_of_the_micelle():
    """With the molecule for its own micelle, low frequencies grow by 1.3 to 2.3 times."""
    ball = torch.exp(-(((torch.arange(32.0) - 16) / 4) ** 2))
    ball = (ball[:, None, None] * ball[:, None] * ball)[None]
    target, observed = draw_maps(
        (ball, ball), 40, torch.Generator().manual_seed(0), pixel_size_A=3.0, patch=32
    )
    both = [low_pass(maps - maps.mean((1, 2, 3), True), 40.0, 3.0) for maps in (target, observed)]
    grown = (both[0] * both[1]).sum((1, 2, 3)) / both[0].square().sum((1, 2, 3))
    assert 1.28 < grown.min() < 1.5 and 2.1 < grown.max() < 2.32  # noise moves them by 0.02


def test_no_random_molecule_is_one_of_the_two_that_judge():
    """The shapes that the model is judged on are not among those that it is trained on."""
    channel = load_volume("channel", 32, 6.0).map
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = coarse_volume(random_molecule(rng), 32, 6.0).map
        both = torch.stack([channel.flatten(), other.flatten()])
        assert torch.corrcoef(both)[0, 1] < 0.8


def test_the_loss_draws_a_level_for_each_image():
    torch.manual_seed(0)
    model = SR3(widths=(16, 32), transformers=1, embedding=32)
    seen = []
    loss = model.loss
    model.loss = lambda c, o, gamma, sigma, g: seen.append(sigma) or loss(c, o, gamma, sigma, g)
    images = torch.randn(64, 32, 32)
    value = any_level_loss(
        model, (images, images), 0.0, torch.Generator().manual_seed(0), snr=MANY_SNR
    )
    assert torch.isfinite(value)
    snr = seen[0] ** -2
    assert snr.min() > 0.019 and snr.max() < 1.01 and snr.log().std() > 0.8
