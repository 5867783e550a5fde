"""Exact laws, and scikit-image and torch-fourier-shell-correlation as oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch_fourier_shell_correlation as tfsc
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cryonb.data.volumes import load_volume
from cryonb.evaluation.metrics import fit_parts, mse, psnr, ssim, sure
from cryonb.evaluation.resolution import (
    figure_of_merit,
    frc,
    fsc,
    fsc_mask_corrected,
    resolution_at,
)
from cryonb.physics.fourier import low_pass
from cryonb.simulation.masks import soft_mask


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mse_and_psnr_by_hand():
    clean = torch.tensor([[[0.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]]])
    image = clean + torch.tensor([1.0, 2.0])[:, None, None]
    torch.testing.assert_close(mse(image, clean), torch.tensor([1.0, 4.0]))
    # 10 log10(4 / 1) and 10 log10(16 / 4): each with its own range
    torch.testing.assert_close(psnr(image, clean), torch.full((2,), 10 * math.log10(4)))


def test_masks_weigh_pixels():
    clean, error = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
    mask = torch.tensor([[1.0, 0.5], [0.0, 0.0]])
    torch.testing.assert_close(mse(error, clean, mask), torch.tensor([(1 + 0.5 * 9) / 1.5]))
    torch.testing.assert_close(mse(error, clean, torch.ones(2, 2)), mse(error, clean))
    with pytest.raises(ValueError, match="mask is empty"):
        mse(error, clean, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="like with like"):
        mse(error, clean[:, :1])


@pytest.mark.parametrize("shape", [(32, 32), (33, 27)])
def test_ssim_and_psnr_equal_scikit_image(shape):
    clean, noise = seeded(4, *shape), seeded(4, *shape, seed=1)
    image = 0.8 * clean + 0.3 * noise + 5.0  # an offset would show cancellation in float32
    result = ssim(image, clean)
    for i in range(4):
        a, b = image[i].double().numpy(), clean[i].double().numpy()
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = structural_similarity(a, b, data_range=np.ptp(b), **options)
        assert result[i] == pytest.approx(expected, abs=1e-10)
        expected = peak_signal_noise_ratio(b, a, data_range=np.ptp(b))
        assert psnr(image, clean)[i] == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(ssim(clean, clean), torch.ones(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="11 px"):
        ssim(clean[:, :10], clean[:, :10])


@pytest.mark.parametrize("n", [16, 17])
def test_fsc_exact_laws(n):
    a, b = seeded(n, n, n).double(), seeded(n, n, n, seed=1).double()
    frequency, same = fsc(a, a, 2.5)
    torch.testing.assert_close(same, torch.ones_like(same))
    torch.testing.assert_close(frequency, torch.arange(n // 2 + 1) / (2.5 * n))
    torch.testing.assert_close(fsc(a, -3 * a)[1], -same)  # blind to scale, not to sign
    torch.testing.assert_close(fsc(a, b)[1], fsc(b, a)[1])
    torch.testing.assert_close(frc(a, b)[1][3], frc(a[3], b[3])[1])  # batches
    assert fsc(a, torch.zeros_like(a))[1].eq(0).all()
    # a mirrored volume is another volume
    assert fsc(a, a.flip(0))[1][3:].abs().max() < 0.5


@pytest.mark.parametrize("n", [16, 17])
def test_fsc_equals_the_full_transform_and_the_oracle(n):
    a, b = seeded(n, n, n).double(), seeded(n, n, n, seed=1).double()
    b = b + a
    k = np.stack(np.meshgrid(*[np.fft.fftfreq(n) * n] * 3, indexing="ij"), -1)
    shells = np.round(np.sqrt((k**2).sum(-1))).astype(int).ravel()
    A, B = np.fft.fftn(a.numpy()).ravel(), np.fft.fftn(b.numpy()).ravel()
    cross = np.bincount(shells, (A * B.conj()).real)
    power = np.bincount(shells, abs(A) ** 2) * np.bincount(shells, abs(B) ** 2)
    expected = (cross / np.sqrt(power))[: n // 2 + 1]
    np.testing.assert_allclose(fsc(a, b)[1], expected, atol=1e-12)


@pytest.mark.parametrize("n", [40, 41])
def test_fsc_agrees_with_torch_fourier_shell_correlation(n):
    a = seeded(n, n, n)
    b = a + seeded(n, n, n, seed=1)
    # The library counts the half transform once, so that its plane x = 0 weighs double: measured
    # 0.012 from shell 5 on, where the plane is a small part of the shell.
    oracle = tfsc.fsc(a, b)[: n // 2 + 1].double()
    torch.testing.assert_close(fsc(a, b)[1][5:], oracle[5:], atol=0.025, rtol=0)


@pytest.mark.parametrize("n", [16, 17])
def test_frc_equals_the_full_transform(n):
    a, b = seeded(n, n).double(), seeded(n, n, seed=1).double()
    k = np.stack(np.meshgrid(*[np.fft.fftfreq(n) * n] * 2, indexing="ij"), -1)
    rings = np.round(np.sqrt((k**2).sum(-1))).astype(int).ravel()
    A, B = np.fft.fftn(a.numpy()).ravel(), np.fft.fftn(b.numpy()).ravel()
    power = np.bincount(rings, abs(A) ** 2) * np.bincount(rings, abs(B) ** 2)
    expected = (np.bincount(rings, (A * B.conj()).real) / np.sqrt(power))[: n // 2 + 1]
    np.testing.assert_allclose(frc(a, b)[1], expected, atol=1e-12)


def test_resolution_interpolates_and_is_honest_at_both_ends():
    frequency = torch.arange(6) / 60.0  # 1/Å
    curve = torch.tensor([1.0, 0.9, 0.7, 0.3, 0.6, 0.1])
    # First fall below 0.5 halfway between shells 2 and 3: 2.5 / 60; the later rise is not counted.
    assert resolution_at(frequency, curve, 0.5) == pytest.approx(60 / 2.5)
    assert resolution_at(frequency, torch.ones(6), 0.5) == pytest.approx(60 / 5)  # Nyquist
    assert resolution_at(frequency, torch.zeros(6), 0.5) == math.inf
    assert resolution_at(frequency, torch.full((6,), torch.nan), 0.5) == math.inf


def test_mask_correction_takes_back_what_the_mask_brings():
    n = 48
    x = torch.arange(n) - n // 2
    radius = (x**2 + x[:, None] ** 2 + x[:, None, None] ** 2).sqrt()
    mask = ((12 - radius) / 3 + 0.5).clamp(0, 1)
    signal = low_pass(seeded(n, n, n) * mask, 12.0, 2.0)  # up to shell 8
    signal /= signal.std()
    half1, half2 = (signal + 0.5 * seeded(n, n, n, seed=s) for s in (1, 2))
    curves = fsc_mask_corrected(half1, half2, mask, 2.0, torch.Generator().manual_seed(0))
    sharp = 8 * mask.round()  # a hard mask correlates pure noise, most of all at low frequency
    assert curves.masked[3] > curves.unmasked[3]
    # Where the signal has ended the mask alone brings 0.6 and more, next to where it did more
    # than far out; the correction takes back most of it. Few independent values per shell there
    # (5,000 voxels coupled in groups of about 60): single values scatter by about 0.1.
    assert curves.masked[11:15].mean() > 0.6
    assert curves.corrected[11:15].mean() < 0.25
    assert curves.corrected[16:].mean() < 0.08
    assert curves.randomised[:4].min() > 0.8  # the inner shells keep their phases
    first = int((curves.unmasked[1:] < 0.8).nonzero()[0]) + 1 + 2  # corrected from here on
    expected = (curves.masked - curves.randomised) / (1 - curves.randomised)
    expected[:first] = curves.masked[:first]
    torch.testing.assert_close(curves.corrected, expected)
    # The same noise in both halves is a real correlation, and the correction leaves it.
    same = fsc_mask_corrected(half1, half1, sharp, 2.0)
    torch.testing.assert_close(same.corrected, torch.ones_like(same.corrected))


@pytest.mark.parametrize("snr", [0.1, 1.0])
def test_the_error_is_estimated_without_the_truth(snr):
    """A filter, shrinkage, copying, and a curved function: Stein's estimate meets the error."""
    g = torch.Generator().manual_seed(0)
    clean = low_pass(torch.randn(200, 24, 24, generator=g), 6.0, 1.0, dims=2)
    clean = clean / clean.std()
    sigma = snr**-0.5
    noisy = clean + sigma * torch.randn(clean.shape, generator=g)
    denoisers = {
        "copy": lambda x: x,
        "nothing": torch.zeros_like,
        "shrink": lambda x: x / (1 + sigma**2),
        "low-pass": lambda x: low_pass(x, 6.0, 1.0, dims=2),
        "curved": lambda x: torch.tanh(x),
    }
    for name, denoiser in denoisers.items():
        true = (denoiser(noisy) - clean).square().mean()
        guess = sure(denoiser, noisy, sigma, torch.Generator().manual_seed(1)).mean()
        # 115,200 pixels: each of the three terms scatters by about sigma^2 times 0.01.
        assert float(guess) == pytest.approx(float(true), abs=0.03 * sigma**2), name


def test_shares_of_known_parts_are_found_in_noise():
    g = torch.Generator().manual_seed(0)
    molecule, belt, noise = torch.randn(3, 16, 16, 16, generator=g)
    map = 0.8 * molecule + 0.3 * (belt + 0.5 * molecule) + 2.0
    exact = fit_parts(map, molecule, belt)
    torch.testing.assert_close(torch.tensor(exact), torch.tensor([0.95, 0.3, 2.0]))
    found = torch.tensor(fit_parts(map + 0.5 * noise, molecule, belt))
    # One standard error: 0.5 / sqrt(4096) = 0.008.
    assert (found - torch.tensor(exact)).abs().max() < 4 * 0.008
    with pytest.raises(ValueError, match="not independent"):
        fit_parts(map, molecule, 2 * molecule)
    with pytest.raises(ValueError, match="differ"):
        fit_parts(map, molecule[1:])


def test_a_mask_deceives_the_truth_as_well():
    """The truth without detail beyond 20 Å, against the truth, as in 06_reconstruct_fsc."""
    truth = load_volume("channel", 64, 3.0).map
    blurred = low_pass(truth, 20.0, 3.0)
    hard = (blurred > 0.5 * blurred.max()).float()
    masks = {18.6: torch.ones_like(truth), 16.8: soft_mask(truth, 3.0), 8.1: hard}
    for expected_A, mask in masks.items():
        at_A = resolution_at(*fsc(blurred * mask, truth * mask, 3.0), 0.5)
        assert at_A == pytest.approx(expected_A, abs=0.1)


def test_half_maps_at_0_143_promise_a_half_with_the_truth():
    """sqrt(2 F / (1 + F)); nothing is promised by what is below zero."""
    found = figure_of_merit(torch.tensor([1 / 7, 1.0, 1 / 3, -0.2]))
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0, 0.5**0.5, 0.0]))
