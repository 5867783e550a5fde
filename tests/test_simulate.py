"""Simulation: units, the SNR's definition, each structural amount by a law of its own."""

from __future__ import annotations

import math

import pytest
import torch

from cryonb.data.volumes import Volume, load_volume
from cryonb.physics.ctf import apply_ctf, ctf
from cryonb.physics.projection import project
from cryonb.simulation.dataset import read_dataset, write_dataset
from cryonb.simulation.masks import micelle, soft_mask
from cryonb.simulation.simulate import (
    SETTINGS,
    StructuralNoise,
    carbon_edge,
    clean_scale,
    ice_gradient,
    neighbours,
    noise_sigma,
    projected_mask,
    setting,
    simulate_images,
)

NONE = StructuralNoise(0, 0, 0, 0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=[32, 31])
def volume(request):
    return load_volume("channel", request.param, 6.0)


@pytest.fixture(scope="module")
def scale(volume):
    return clean_scale(volume)


def test_clean_images_have_unit_variance_and_are_projections(volume, scale):
    images = simulate_images(volume, 500, NONE, generator(1), scale=scale)
    # `scale` comes from 512 other poses; the variance of a mean of 500 views is below 1 %.
    assert float(images.clean.var()) == pytest.approx(1.0, abs=0.03)
    expected = project(volume.map, images.rotations[:5]) / scale
    torch.testing.assert_close(images.clean[:5], expected)
    assert not images.structure.any() and images.defocus_um is None
    assert torch.equal(images.observed(6.0), images.clean)


@pytest.mark.parametrize("snr", [1.0, 0.1, 0.01])
def test_sigma_is_the_root_of_one_over_snr(snr):
    assert noise_sigma(snr) ** 2 * snr == pytest.approx(1.0)


@pytest.mark.parametrize("snr", [0.0, -0.1, math.inf, math.nan])
def test_an_snr_that_is_no_positive_number_is_refused(snr):
    with pytest.raises(ValueError, match="give a positive number"):
        noise_sigma(snr)


@pytest.mark.parametrize("noise", ["white", "structural"])
def test_snr_is_clean_variance_over_noise_variance(tmp_path, volume, noise):
    counts = {"train": 200, "validation": 2, "test": 2}
    data = read_dataset(write_dataset(tmp_path / "d", volume, counts, snr=0.2, noise=noise))
    white = data.train.noisy.images - data.train.observed
    # 200 images of about 1,000 pixels: the variance of the noise is known to 0.3 %.
    assert float(white.var()) == pytest.approx(data.sigma**2, rel=0.02)
    assert float(data.train.clean.images.var() / white.var()) == pytest.approx(0.2, rel=0.05)
    spectrum = torch.fft.rfft2(white).abs().square().mean(0)[1:, 1:-1]
    assert spectrum.std() < 3 * spectrum.mean() / math.sqrt(200)  # flat: exponential / 200 images


def test_settings_by_name():
    assert setting("white") == NONE and setting("structural") == StructuralNoise()
    with pytest.raises(ValueError, match="choose one of white, structural"):
        setting("structurel")
    assert set(SETTINGS) == {"white", "structural"}


def test_micelle_amount_is_a_factor_on_the_projected_belt(volume, scale):
    images = {
        a: simulate_images(volume, 4, StructuralNoise(a, 0, 0, 0), generator(), scale=scale)
        for a in (1.0, 2.5)
    }
    belt = project(micelle(volume), images[1.0].rotations) / scale
    torch.testing.assert_close(images[1.0].structure, belt)
    torch.testing.assert_close(images[2.5].structure, 2.5 * belt, atol=1e-5, rtol=1e-4)
    assert float(belt.var()) > 0.05  # there is something to remove


def test_the_target_knows_nothing_of_the_structure(volume, scale):
    white = simulate_images(volume, 6, NONE, generator(3), scale=scale)
    full = simulate_images(volume, 6, StructuralNoise(), generator(3), scale=scale)
    torch.testing.assert_close(full.clean, white.clean)  # same seed, same poses
    torch.testing.assert_close(full.rotations, white.rotations)
    torch.testing.assert_close(full.observed(6.0) - full.structure, white.clean)


def test_neighbours_are_poisson_many_and_only_at_the_rim():
    n, box, mean = 3000, 32, 0.7
    spot = torch.zeros(n, box, box)
    spot[:, 15:18, 15:18] = 1.0  # a particle of 3 pixels at the centre
    out = neighbours(spot, mean, generator())
    axis = torch.arange(box, dtype=torch.float32) - box // 2
    far = torch.hypot(axis[:, None], axis)
    assert not out[:, far < 0.6 * box - 4].any()  # moved by at least 0.6 boxes, less the spot
    wide = neighbours(torch.ones(n, box, box), mean, generator())
    untouched = float((wide.amax((1, 2)) == 0).double().mean())
    # A share e^-mean has none; three standard errors of 3,000 draws.
    assert untouched == pytest.approx(math.exp(-mean), abs=3 * math.sqrt(0.25 / n))
    assert not neighbours(spot, 0.0, generator()).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_neighbour_is_a_copy_moved_whole(sign):
    image = torch.arange(32.0 * 32).reshape(1, 32, 32) + 1  # every pixel differs
    out = neighbours(image.expand(50, -1, -1) * sign, 0.3, generator(2))
    moved = 0
    for one in out:
        found = one.nonzero()
        values = one[one != 0].abs()
        if len(values) and values.diff().min() > 0 and values.max() <= 32 * 32:  # one neighbour
            source = (values - 1).long()
            shift = found - torch.stack([source // 32, source % 32], 1)
            assert (shift == shift[0]).all()
            assert 0.55 * 32 <= float(shift[0].float().norm()) <= 0.86 * 32
            moved += 1
    assert moved >= 5


@pytest.mark.parametrize("box", [32, 31])
def test_ice_is_a_plane_whose_edge_value_has_the_given_spread(box):
    ramps = ice_gradient(4000, box, 0.5, generator())
    second = ramps.diff(n=2, dim=1).abs().max() + ramps.diff(n=2, dim=2).abs().max()
    assert float(second) < 1e-4  # linear, to rounding
    assert not ramps[:, box // 2, box // 2].any()  # zero at the centre
    slope = torch.stack([ramps.diff(dim=1)[:, 0, 0], ramps.diff(dim=2)[:, 0, 0]])
    edge = slope.norm(dim=0) * box / 2
    # Root mean square of 4,000 normal values: 1.1 % standard error.
    assert float(edge.square().mean().sqrt()) == pytest.approx(0.5, rel=0.04)


def test_carbon_crosses_the_given_share_and_leaves_the_middle():
    images = carbon_edge(2000, 32, 6.0, 0.15, generator())
    hit = images.abs().amax((1, 2)) > 0
    assert float(hit.double().mean()) == pytest.approx(0.15, abs=3 * math.sqrt(0.15 * 0.85 / 2000))
    assert float(images[hit].amax((1, 2)).min()) > 0.3  # brighter than ice
    middle, rim = images[hit][:, 14:18, 14:18].square().mean(), images[hit].square().mean()
    assert middle < 0.05 * rim
    assert not carbon_edge(50, 32, 6.0, 0.0, generator()).any()


def test_seeds_repeat_and_differ(volume, scale):
    one, again, other = (
        simulate_images(volume, 5, StructuralNoise(), generator(s), scale=scale) for s in (4, 4, 5)
    )
    assert torch.equal(one.clean, again.clean) and torch.equal(one.structure, again.structure)
    assert not torch.equal(one.clean, other.clean)
    assert clean_scale(volume) == scale


def test_ctf_acts_on_molecule_and_structure_alike(volume, scale):
    images = simulate_images(
        volume, 40, StructuralNoise(), generator(), scale=scale, defocus_um=(1.0, 2.0)
    )
    assert images.defocus_um.min() >= 1.0 and images.defocus_um.max() <= 2.0
    assert images.defocus_um.std() > 0.2  # uniform: 0.29
    expected = apply_ctf(
        images.clean + images.structure, ctf(images.clean.shape[-1], 6.0, images.defocus_um)
    )
    torch.testing.assert_close(images.observed(6.0), expected)
    plain = simulate_images(volume, 40, StructuralNoise(), generator(), scale=scale)
    torch.testing.assert_close(images.clean, plain.clean)  # the target carries no CTF


def test_projected_mask_holds_the_particle_in_every_pose(volume):
    ball = torch.zeros_like(volume.map)
    c = len(ball) // 2
    ball[c - 2 : c + 3, c - 2 : c + 3, c - 2 : c + 3] = 1.0
    ball[c, c, c + 9] = 1.0  # one voxel: no thicker than one pixel, so not in the mask
    mask = projected_mask(ball, torch.eye(3)[None])[0]
    expected = torch.zeros_like(mask)
    expected[c - 2 : c + 3, c - 2 : c + 3] = True
    assert mask.dtype == torch.bool and torch.equal(mask, expected)


@pytest.mark.parametrize("big", [slice(8, 20), slice(24, 36)])
def test_a_mask_keeps_the_largest_piece_wherever_it_lies(big):
    small = slice(44 - big.stop, 48 - big.stop) if big.start < 20 else slice(6, 10)
    density = torch.zeros(44, 44, 44)
    density[big, big, big], density[small, small, small] = 1.0, 1.5
    options = {"low_pass_A": 4.0, "extend_A": 0.0, "soft_edge_A": 4.0}
    whole, largest = (soft_mask(density, 1.0, largest=k, **options) for k in (False, True))
    in_big, in_small = (big.start + 6,) * 3, (small.start + 2,) * 3
    assert whole[in_big] == whole[in_small] == largest[in_big] == 1 and largest[in_small] == 0
    torch.testing.assert_close(whole[big, big, big], largest[big, big, big])


def test_a_mask_falls_by_half_a_cosine():
    """A slab of 9 voxels: 1 to `extend_A` beyond it, then (1 + cos(π d / edge)) / 2."""
    density = torch.zeros(48, 48, 48)
    density[:, :, 10:19] = 1.0
    mask = soft_mask(density, 2.0, low_pass_A=0.4, extend_A=4.0, soft_edge_A=10.0)
    d = torch.clamp((torch.arange(48.0) - 18) * 2.0 - 4.0, 0, 10)  # Å beyond the flat part
    expected = (1 + torch.cos(math.pi * d / 10)) / 2
    torch.testing.assert_close(mask[24, 24, 14:], expected[14:])


@pytest.mark.parametrize("low_pass_A, is_open", [(8.0, True), (16.0, False)])
def test_a_mask_is_blurred_by_a_quarter_of_the_low_pass(low_pass_A, is_open):
    """The middle of a gap of 3 px is filled to 0.12 by a sigma of 1 px, to 0.45 by one of 2 px."""
    density = torch.zeros(40, 40, 40)
    density[:, :, 10:19] = density[:, :, 22:31] = 1.0
    mask = soft_mask(density, 2.0, low_pass_A=low_pass_A, extend_A=0.0, soft_edge_A=0.0)
    assert mask[20, 20, 14] == 1 and (mask[20, 20, 20] == 0) == is_open


@pytest.mark.parametrize("shell_A", [6.0, 12.0])
def test_head_groups_are_a_shell_of_the_belt(shell_A):
    """On its equator the belt goes from heads (1) to chains (-1) that far below its surface."""
    axis = (torch.arange(80.0) - 40) * 2.0  # Å
    rod = (torch.hypot(axis[:, None], axis) < 24) * (axis.abs() < 50)[:, None, None]
    volume = Volume(rod.float(), 2.0, "rod", membrane_z_A=(-15.0, 15.0))
    levels = {"width_A": 40.0, "shell_A": shell_A, "head_level": 1.0, "core_level": -1.0}
    row = micelle(volume, **levels)[40, 40, 40:] / rod.float()[rod].mean()
    inner = 24 + 2.0 * float((row[12:] < 0).nonzero()[-1])  # the last of the chains
    at = int(inner / 2)
    middle = inner + 2 * float(row[at] / (row[at] - row[at + 1]))  # where the sign changes
    surface = 2 * (len(row) - 1 - int((row.flip(0) > 0.5).nonzero()[0]))
    surface += 2 * float((row[surface // 2] - 0.5) / (row[surface // 2] - row[surface // 2 + 1]))
    assert surface - middle == pytest.approx(shell_A, abs=1.0)
