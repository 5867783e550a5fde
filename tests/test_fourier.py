"""Exact laws of resampling, shells and filters."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch

from cryonb.physics.fourier import (
    fourier_crop,
    low_pass,
    radial_mean,
    randomise_phases,
    shell_index,
    shell_sum,
)


@pytest.mark.parametrize("n", [7, 8])
@pytest.mark.parametrize("size", [4, 5, 9, 12])
def test_fourier_crop_equals_scipy_resample(n, size):
    x = np.random.default_rng(0).random((3, n, n))
    expected = np.fft.ifftshift(x, axes=(1, 2))
    for axis in (1, 2):
        expected = scipy.signal.resample(expected, size, axis=axis)
    expected = np.fft.fftshift(expected, axes=(1, 2))
    # Float64 rounding only: the same formula.
    np.testing.assert_allclose(fourier_crop(torch.tensor(x), size, dims=2), expected, atol=1e-12)


@pytest.mark.parametrize(("n", "size"), [(8, 13), (7, 10), (8, 10), (9, 15)])
def test_padding_then_cropping_returns_the_input(n, size):
    x = torch.rand(n, n, n, dtype=torch.float64)
    torch.testing.assert_close(fourier_crop(fourier_crop(x, size), n), x)


@pytest.mark.parametrize(("n", "size"), [(32, 20), (33, 20), (32, 21), (33, 21)])
def test_fourier_crop_keeps_scale_and_centre(n, size):
    def blob(box, scale):  # 0.3 of the box off centre along x, different widths
        c = (torch.arange(box, dtype=torch.float64) - box // 2) / scale
        wide, narrow = torch.exp(-(c**2) / 2 / 0.16**2), torch.exp(-((c - 0.1) ** 2) / 2 / 0.1**2)
        return wide[:, None, None] * wide[:, None] * narrow

    # The narrow Gaussian has exp(-2 (pi 0.1 * 10)^2) ~ 3e-9 left at the coarse Nyquist frequency;
    # the wide one has exp(-0.5 (0.5 / 0.16)^2) ~ 8e-3 left at the box edge, where it wraps.
    cropped = fourier_crop(blob(n, n), size)
    inner = slice(size // 4, -(size // 4))
    torch.testing.assert_close(
        cropped[inner, inner, inner], blob(size, size)[inner, inner, inner], atol=2e-3, rtol=0
    )
    torch.testing.assert_close(
        fourier_crop(torch.full((n, n), 3.0), size), torch.full((size, size), 3.0)
    )


def test_fourier_crop_refuses_a_stack_taken_for_a_volume():
    with pytest.raises(ValueError, match="dims=2"):
        fourier_crop(torch.rand(3, 8, 8), 4)
    with pytest.raises(ValueError, match="at least one pixel"):
        fourier_crop(torch.rand(8, 8), 0)


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (8, 8, 8), (9, 9, 9)])
def test_shells_are_rounded_radii(shape):
    n = shape[0]
    k = np.stack(np.meshgrid(*[np.fft.fftfreq(n) * n] * len(shape), indexing="ij"), -1)
    expected = np.round(np.sqrt((k**2).sum(-1))).astype(int)[..., : n // 2 + 1]
    np.testing.assert_array_equal(shell_index(shape), expected)


@pytest.mark.parametrize("n", [10, 11])
def test_shell_sums_equal_those_of_the_full_transform(n):
    x = np.random.default_rng(1).random((n, n, n))
    k = np.stack(np.meshgrid(*[np.fft.fftfreq(n) * n] * 3, indexing="ij"), -1)
    shells = np.round(np.sqrt((k**2).sum(-1))).astype(int).ravel()
    full = np.bincount(shells, (np.abs(np.fft.fftn(x)) ** 2).ravel())[: n // 2 + 1]
    half = torch.fft.rfftn(torch.tensor(x)).abs().square()
    np.testing.assert_allclose(shell_sum(half, 3, n), full)
    np.testing.assert_allclose(
        radial_mean(half, n, dims=3), full / np.bincount(shells)[: n // 2 + 1]
    )


@pytest.mark.parametrize("n", [40, 41])
def test_low_pass_keeps_coarse_and_removes_fine_waves(n):
    x = torch.arange(n) - n // 2
    waves = {k: torch.cos(2 * torch.pi * k * x / n).expand(n, n, n) for k in (4, 10, 16)}
    pixel_size_A = 2.0
    resolution_A = n * pixel_size_A / 10  # shell 10
    for k, gain in ((4, 1.0), (10, 0.5), (16, 0.0)):
        out = low_pass(waves[k], resolution_A, pixel_size_A)
        torch.testing.assert_close(out, gain * waves[k], atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [16, 17])
def test_randomise_phases_keeps_amplitudes_and_the_inner_shells(n):
    volume = torch.randn(n, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = randomise_phases(volume, 5, torch.Generator().manual_seed(1))
    a, b = torch.fft.rfftn(volume), torch.fft.rfftn(out)
    k = np.stack(np.meshgrid(*[np.fft.fftfreq(n) * n] * 3, indexing="ij"), -1)
    near = torch.tensor((k**2).sum(-1)[..., : n // 2 + 1].round() < 25)
    torch.testing.assert_close(b.abs(), a.abs())
    torch.testing.assert_close(b[near], a[near])
    correlation = (a * b.conj()).real[~near].sum() / a[~near].abs().square().sum()
    # About 4000 / 2 independent random phases: standard deviation below 0.02.
    assert abs(correlation) < 0.1
