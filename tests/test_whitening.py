"""Measuring noise and undoing it: against stacks whose noise is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cryonb.data.particles import particles_from_arrays
from cryonb.data.whitening import (
    FLIPPED,
    MULTIPLIED,
    from_network,
    level,
    measure_noise,
    to_network,
)
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


def test_whitened_images_have_the_snr_and_noise_that_are_promised():
    particles, signal, gain = stack()
    noise = measure_noise(particles)
    white, deviation = to_network(particles, noise)
    # The same linear operations on the signal alone give what is left beside it.
    clean = to_network(dataclasses.replace(particles, images=gain * signal), noise)
    clean = clean[0] * clean[1] / deviation
    left = white - clean
    assert float(left.std()) == pytest.approx(noise.sigma, rel=0.03)
    power_ft = torch.fft.rfft2(left).abs().square().mean(0)
    outer, inner = power_ft[6:18, 0].mean(), power_ft[20:28, 20:].mean()
    assert float(outer / inner) == pytest.approx(1, abs=0.1), "white"
    assert noise.snr == pytest.approx(float(clean.var() * noise.snr), rel=0.15)


def test_what_goes_in_comes_out():
    particles, *_ = stack(n=20)
    noise = measure_noise(particles)
    flat, deviation = level(particles.images, noise.radius_px)
    back = from_network(*to_network(particles, noise), particles, noise)
    torch.testing.assert_close(back, flat * deviation, atol=1e-3, rtol=0)


def test_contrast_is_detected_and_may_be_said():
    assert measure_noise(stack(sign=1)[0]).sign == 1
    dark = stack(sign=-1)[0]
    assert measure_noise(dark).sign == -1
    assert measure_noise(dark, sign=1).sign == 1
    white, _ = to_network(dark, measure_noise(dark))
    assert white[:, 20:28, 20:28].mean() > 0.3, "bright for the network"


def test_phases_are_flipped_once():
    particles, *_ = stack(n=40)
    noise = measure_noise(particles)
    flipped = dataclasses.replace(particles, optics=particles.optics.assign(**{FLIPPED: 1}))
    turned = torch.where(particles.ctf < 0, -1.0, 1.0)
    images = torch.fft.irfft2(torch.fft.rfft2(particles.images) * turned, s=(BOX, BOX))
    a, _ = to_network(particles, noise)
    b, _ = to_network(dataclasses.replace(flipped, images=images), noise)
    # Flipping carries the ramp's rim with it, so the two agree but for that.
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.95
    multiplied = dataclasses.replace(particles, optics=particles.optics.assign(**{MULTIPLIED: 1}))
    with pytest.raises(ValueError, match="multiplied by their CTF"):
        measure_noise(multiplied)


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
