"""K-SVD: its parts by exact laws, the whole on a simulated channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch.testing import assert_close

from cryonb.data.volumes import load_volume
from cryonb.denoisers.ksvd import ksvd, learn_dictionary, overcomplete_dct, sparse_codes
from cryonb.evaluation.metrics import psnr
from cryonb.simulation.simulate import SETTINGS, clean_scale, simulate_images


def unit_columns(rng, pixels: int, atoms: int) -> np.ndarray:
    columns = rng.standard_normal((pixels, atoms))
    return columns / np.linalg.norm(columns, axis=0)


@pytest.mark.parametrize("atoms", [64, 100, 256])
def test_dct_atoms_are_unit_without_mean_and_all_different(atoms):
    dictionary = overcomplete_dct(8, atoms)
    assert dictionary.shape == (64, atoms)
    np.testing.assert_allclose(np.square(dictionary).sum(0), 1)
    # Products with a constant factor have their mean zero by the other one.
    np.testing.assert_allclose(dictionary.sum(0), 0, atol=1e-12)
    assert np.abs(np.triu(dictionary.T @ dictionary, 1)).max() < 0.9999


def test_codes_reach_the_error_with_no_atom_to_spare():
    rng = np.random.default_rng(0)
    dictionary, rows = unit_columns(rng, 16, 40), rng.standard_normal((50, 16))
    error = 4.0
    codes = sparse_codes(dictionary, rows, error, most=16)
    assert (np.square(rows - codes @ dictionary.T).sum(1) <= error).all()
    for row, code in zip(rows, codes, strict=True):
        used = np.flatnonzero(code)
        if len(used) == 0:
            assert np.square(row).sum() <= error
            continue
        fit = np.linalg.lstsq(dictionary[:, used], row, rcond=None)[0]
        np.testing.assert_allclose(code[used], fit, rtol=1e-8)  # best for the atoms it has
        strongest = np.abs(dictionary.T @ row).argmax()
        assert strongest in used  # the first one is
    assert len(set(np.count_nonzero(codes, axis=1))) > 2


def test_codes_stop_at_the_most():
    rng = np.random.default_rng(0)
    dictionary, rows = unit_columns(rng, 16, 40), rng.standard_normal((20, 16))
    codes = sparse_codes(dictionary, rows, 1e-20, most=3)
    assert (np.count_nonzero(codes, axis=1) == 3).all()
    one = sparse_codes(dictionary, rows[:1], 1e-20, most=3)
    np.testing.assert_allclose(one, codes[:1])


def test_a_dictionary_of_rows_with_one_atom_each_is_found():
    rng = np.random.default_rng(0)
    true = unit_columns(rng, 16, 20)
    amounts = rng.uniform(1, 3, 600) * rng.choice([-1, 1], 600)
    rows = amounts[:, None] * true.T[rng.integers(0, 20, 600)]
    start = true + 0.1 * rng.standard_normal(true.shape)
    start /= np.linalg.norm(start, axis=0)
    assert np.abs((true * start).sum(0)).min() < 0.92  # some begin more than 23° away
    found = learn_dictionary(start, rows, 1e-4, most=1, rounds=6)
    np.testing.assert_allclose(np.square(found).sum(0), 1)
    assert (np.abs((true * found).sum(0)) > 0.9999).all()


def test_an_unused_atom_becomes_the_row_that_fits_worst():
    start = np.eye(4)[:, [0, 3]]  # no row uses the second
    rows = np.array([[5.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, -2.0, 0.0]])
    found = learn_dictionary(start, rows, 0.1, most=1, rounds=1)
    np.testing.assert_allclose(found, np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]).T)
    np.testing.assert_array_equal(start, np.eye(4)[:, [0, 3]])


def test_tiny_noise_gives_the_input_back():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 11, 14, generator=generator)
    out = ksvd(images, 1e-6, patch=8, atoms=80, rounds=1, n_patches=50)
    assert_close(out, images, rtol=0, atol=1e-4)


def test_a_constant_image_and_any_unit():
    assert_close(ksvd(torch.full((2, 16, 16), 3.0), 0.5, patch=8), torch.full((2, 16, 16), 3.0))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 20, 19, generator=generator) + 2 * torch.ones(2, 20, 19).tril()
    small = {"patch": 6, "atoms": 64, "n_patches": 200, "stride": 3}
    one = ksvd(images, 1.0, **small)
    assert one.shape == images.shape and one.dtype == images.dtype
    assert_close(ksvd(1e4 * images, 1e4, **small) / 1e4, one, rtol=1e-4, atol=1e-4)
    assert_close(ksvd(images + 7, 1.0, **small), one + 7, rtol=1e-4, atol=1e-4)


def test_what_is_within_the_tolerance_is_averaged_and_blended():
    """A ramp and a chessboard: power 1.155 in every patch, below 1.08^2, so no atoms. The patches'
    means leave the ramp; the chessboard comes back by the weight of the noisy image alone."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    board = 1.05 * (1 - 2 * ((x + y) % 2))
    noisy = (0.1 * x + board)[None]
    blend = 0.6 / 64 * (noisy.var(correction=0) - 1) ** 0.5
    inside = ..., slice(8, 24), slice(8, 24)
    expected = 0.1 * x + board * blend / (1 + blend)
    assert_close(ksvd(noisy, 1.0, patch=8, stride=1)[0][inside], expected[inside])


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(ValueError, match="sigma"):
        ksvd(torch.zeros(1, 16, 16), sigma)


def test_images_must_be_finite_and_not_smaller_than_a_patch():
    with pytest.raises(ValueError, match="12 px"):
        ksvd(torch.zeros(1, 16, 11), 1.0)
    with pytest.raises(ValueError, match="finite stack"):
        ksvd(torch.zeros(16, 16), 1.0)
    with pytest.raises(ValueError, match="NaN"):
        ksvd(torch.full((1, 16, 16), float("nan")), 1.0)


@pytest.fixture(scope="module")
def clean():
    volume, generator = load_volume("channel", 32, 6.0), torch.Generator().manual_seed(1)
    scale = clean_scale(volume)
    return simulate_images(volume, 40, SETTINGS["white"], generator, scale=scale).clean


def with_noise(images, sigma):
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))


def test_learned_atoms_are_fewer(clean):
    noisy = with_noise(clean, 0.3).double().numpy()
    patches = sliding_window_view(noisy, (8, 8), (1, 2))[:, 6:20:3, 6:20:3].reshape(-1, 64)
    rows = patches - patches.mean(1, keepdims=True)
    start = overcomplete_dct(8, 128)
    learned = learn_dictionary(start, rows, (1.15 * 0.3 * 8) ** 2, most=32, rounds=3)
    before, after = (
        np.count_nonzero(sparse_codes(atoms, rows, (1.15 * 0.3 * 8) ** 2, most=32))
        for atoms in (start, learned)
    )
    assert after < 0.9 * before  # for the same error


def test_much_better_than_the_input_in_strong_noise(clean):
    noisy = with_noise(clean, 10**0.5)
    out = ksvd(noisy, 10**0.5, patch=8, n_patches=4000)
    assert (psnr(out, clean) - psnr(noisy, clean)).mean() > 12
