"""Measuring noise and undoing it: against stacks whose noise is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cryonb.data.optics import FLIPPED, MULTIPLIED
from cryonb.data.particles import particles_from_arrays
from cryonb.data.whitening import (
    from_network,
    level,
    measure_noise,
    to_network,
    transfer_to_network,
)
from cryonb.physics.ctf import apply_ctf
from cryonb.physics.fourier import filter_radially
from cryonb.physics.geometry import random_rotations

BOX, N = 48, 300


def slope(f: torch.Tensor) -> torch.Tensor:
    """Amplitude of the coloured noise."""
    return (1 + 3 * torch.exp(-((f / 0.1) ** 2))).sqrt()


def stack(snr: float = 0.2, sign: int = 1, n: int = N):
    """Discs with CTF in coloured noise, with offset, ramp and gain; and the signal alone."""
    g = torch.Generator().manual_seed(0)
    at = torch.arange(BOX) - BOX // 2
    shape = (at[:, None] ** 2 + at**2 < 10**2).float() + 0.5 * (
        at[:, None] ** 2 + (at - 4) ** 2 < 9
    )
    noise = filter_radially(torch.randn(n, BOX, BOX, generator=g), slope, dims=2)
    defocus = 1 + torch.rand(n, generator=g)
    plain = particles_from_arrays(
        (shape / shape.std()).repeat(n, 1, 1), random_rotations(n, g), 4.0, defocus_um=defocus
    )
    signal = torch.fft.irfft2(torch.fft.rfft2(plain.images) * plain.ctf, s=(BOX, BOX))
    gain = 2 + torch.rand(n, 1, 1, generator=g)
    images = gain * (sign * signal + noise * snr**-0.5) + 70 + 0.3 * at
    return dataclasses.replace(plain, images=images), signal, gain


def test_the_noise_spectrum_is_found():
    noise = measure_noise(stack()[0])
    expected = slope(torch.arange(BOX // 2 + 1) / BOX) ** 2
    ratio = noise.spectrum / expected
    ratio = ratio / ratio[8:].mean()
    # The ramp takes the lowest shells with it; a mask of the background smooths over two shells.
    torch.testing.assert_close(ratio[4:], torch.ones(len(ratio) - 4), atol=0.08, rtol=0)
    # Without what was taken out it would fall to 0.3 there.
    assert ratio[:4].min() > 0.7


def test_whitened_images_have_the_snr_and_noise_that_are_promised():
    particles, signal, gain = stack()
    noise = measure_noise(particles)
    white, background = to_network(particles, noise)
    # The same linear operations on the signal alone give what is left beside it.
    clean = to_network(dataclasses.replace(particles, images=gain * signal), noise)
    clean = clean[0] * clean[1].deviation / background.deviation
    left = white - clean
    assert float(left.std()) == pytest.approx(noise.sigma, rel=0.03)
    power_ft = torch.fft.rfft2(left).abs().square().mean(0)
    outer, inner = power_ft[6:18, 0].mean(), power_ft[20:28, 20:].mean()
    assert float(outer / inner) == pytest.approx(1, abs=0.1), "white"
    assert noise.snr == pytest.approx(float(clean.var() * noise.snr), rel=0.15)


def test_the_background_has_exactly_the_deviation_that_is_promised():
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(20, BOX, BOX, generator=g)
    images = filter_radially(noise, lambda f: 1 / (0.01 + f), dims=2)
    particles = particles_from_arrays(images, random_rotations(20, g), 4.0)
    noise = measure_noise(particles)
    at = torch.arange(BOX) - BOX // 2
    outside = (at[:, None] ** 2 + at**2).sqrt() > noise.radius_px
    white, _ = to_network(particles, noise)
    # The spectrum is smoothed and the mask soft: 0.97 of it without the correction.
    assert float(white[:, outside].std()) == pytest.approx(noise.sigma, rel=1e-3)


def test_what_goes_in_comes_out():
    particles, *_ = stack(n=20)
    noise = measure_noise(particles)
    flat, background = level(particles.images, noise.radius_px)
    back = from_network(*to_network(particles, noise), particles, noise)
    expected = flat * background.deviation + background.offset  # all but the ramp
    torch.testing.assert_close(back, expected, atol=1e-3, rtol=0)


def test_contrast_is_detected_and_may_be_said():
    assert measure_noise(stack(sign=1)[0]).sign == 1
    dark = stack(sign=-1)[0]
    assert measure_noise(dark).sign == -1
    assert measure_noise(dark, sign=1).sign == 1
    white, _ = to_network(dark, measure_noise(dark))
    assert white[:, 20:28, 20:28].mean() > 0.3, "bright for the network"


def test_every_treatment_of_the_images_is_undone_by_its_own_rule():
    """A third of the images carry their CTF, a third were flipped, a third premultiplied."""
    particles, *_ = stack(n=60)
    particles = particles.with_images(particles.images - 0.3 * (torch.arange(BOX) - BOX // 2))
    noise, wave, third = measure_noise(particles), particles.ctf, torch.arange(60) % 3
    factor = torch.where((third == 1)[:, None, None], wave.sign(), wave)
    factor[third == 0] = 1.0
    flags = {FLIPPED: (third == 1).int().numpy(), MULTIPLIED: (third == 2).int().numpy()}
    table, images = particles.table.assign(**flags), apply_ctf(particles.images, factor)
    mixed = dataclasses.replace(particles, images=images, table=table)
    usual, _ = to_network(particles, noise)
    white, background = to_network(mixed, noise)
    back = from_network(white, background, mixed, noise)
    for k in range(3):
        pair = torch.stack([usual[third == k].flatten(), white[third == k].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.98, k  # flips and the CTF reach over the rim
        pair = torch.stack([images[third == k].flatten(), back[third == k].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.995, k
    size = wave.abs()
    size[third == 2] *= (size / size.clamp_min(0.1))[third == 2]  # divided by it, but for zeros
    filtered = size * transfer_to_network(particles.with_ctf(False), noise)
    torch.testing.assert_close(
        transfer_to_network(mixed, noise)[third > 0], filtered[third > 0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_images_tell_their_contrast(n, sign):
    assert measure_noise(stack(snr=0.5, sign=sign, n=n)[0]).sign == sign


def test_images_without_noise_do_not_disturb_the_others():
    particles, *_ = stack(n=6)
    images = particles.images.clone()
    images[2] = 7.0
    some = particles.with_images(images)
    noise = measure_noise(some)
    back = from_network(*to_network(some, noise), some, noise)
    torch.testing.assert_close(back[2], images[2], atol=1e-4, rtol=0)
    others = measure_noise(some.select([0, 1, 3, 4, 5]))
    assert noise.snr == pytest.approx(others.snr, rel=1e-4)
    with pytest.raises(ValueError, match="no noise in their background"):
        measure_noise(some.select([2, 2]))


def test_a_radius_without_background_is_refused():
    with pytest.raises(ValueError, match="no background"):
        measure_noise(stack(n=4)[0], BOX / 2)


def test_resampling_keeps_width_and_optics():
    particles, *_ = stack(n=3)
    small = particles.resampled(24)
    assert small.box_size == 24 and small.pixel_size_A == 8.0
    assert small.ctf.shape == (3, 24, 13)
    torch.testing.assert_close(small.shifts_px, particles.shifts_px / 2)
    assert particles.resampled(BOX) is particles
